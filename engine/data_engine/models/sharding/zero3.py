"""Models split over the ranks by DeepSpeed ZeRO-3: a rank keeps a share of every weight, and gathers a layer to run it.

Decoder and vision tower are split. Embeddings, head and projector, which are used between calls, stay whole on each
rank. A weight is divided as soon as it is read, so that no rank ever holds the whole model. All ranks make each call of
a split module at the same time: see lock_step.py.
"""

import contextlib
import copy
import functools
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from data_engine.models.base import VisionLanguageModel
from data_engine.models.checkpoints.allocation import map_large_tensors
from data_engine.models.sharding.lock_step import DECODE, ENCODE, CallAgreement
from data_engine.models.sharding.settings import require_installed


def is_divided(name: str) -> bool:
    """Whether a weight, by its name in a family's modules, is divided."""
    return name.startswith(("decoder.", "vision.")) and not name.startswith("decoder.embed_tokens.")


class Zero3Split:
    """A models.base.Split by ZeRO-3; the ranks agree on each call of the model by `agreement`."""

    def __init__(self, settings: dict, agreement: CallAgreement, rank: int) -> None:
        require_installed()
        map_large_tensors()
        self.agreement, self._rank, self._settings = agreement, rank, settings
        self._divided: list[nn.Parameter] = []

    @property
    def reads(self) -> bool:
        """Whether this rank reads the divided weights from disk: rank 0 does, and sends the others their shares."""
        return self._rank == 0

    def divides(self, name: str) -> bool:
        """Whether a weight, by its name in a family's modules, is divided."""
        return is_divided(name)

    def divide(self, value: torch.Tensor) -> nn.Parameter:
        """A parameter of which this rank keeps its share. Rank 0 passes the value, others an empty tensor like it."""
        zero = deepspeed().zero
        holder = nn.Module()
        holder.weight = nn.Parameter(value, requires_grad=False)
        zero.Init(module=holder, config_dict_or_path=self._config(value.dtype))
        self._divided.append(holder.weight)
        return holder.weight

    def release(self) -> None:
        """Free the weights of the model that was split last: DeepSpeed keeps its modules until the process ends."""
        for parameter in self._divided:
            parameter.data = torch.empty(0)
            parameter.ds_tensor.data = torch.empty(0)
        self._divided.clear()

    def run_together(self, model: VisionLanguageModel) -> None:
        """Have all ranks make each call of the model's decoder and vision tower at the same time."""
        with _without(model.whole_modules()):
            for kind, module in ((DECODE, model.decoder), (ENCODE, model.vision)):
                if module is None:
                    continue
                # One DeepSpeed engine each: for prefetching, an engine records the order of the layers of one module.
                with _quiet():
                    deepspeed().initialize(model=module, config=self._config(model.dtype))
                # Before DeepSpeed's own hook, which gathers the weights.
                module.register_forward_pre_hook(functools.partial(_agree_first, self.agreement, kind), prepend=True)
        self.agreement.register(DECODE, model.idle_decode)
        self.agreement.register(ENCODE, model.idle_encode)

    def _config(self, dtype: torch.dtype) -> dict:
        precision = {torch.bfloat16: {"bf16": {"enabled": True}}, torch.float16: {"fp16": {"enabled": True}}}
        return copy.deepcopy(self._settings) | precision.get(dtype, {}) | {"train_micro_batch_size_per_gpu": 1}


def _agree_first(agreement: CallAgreement, kind: int, _module: nn.Module, _inputs: tuple) -> None:
    agreement.before(kind)


@contextlib.contextmanager
def _without(places: list[tuple[nn.Module, str]]) -> Iterator[None]:
    """Take modules out: DeepSpeed would divide the weights of all that it finds."""
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, _ in kept:
        setattr(owner, name, None)
    try:
        yield
    finally:
        for owner, name, module in kept:
            setattr(owner, name, module)


@functools.cache
def deepspeed():
    """DeepSpeed, imported on first use: the import takes seconds and prints a lot."""
    with _quiet():
        import deepspeed

        # DeepSpeed would compile a C++ operation for reductions between CPU ranks, which nothing here uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls torch by a deprecated name.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.* is deprecated", category=FutureWarning)
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress DeepSpeed's prints to standard output, and its log below errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.disable(before)
