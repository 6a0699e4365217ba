"""Models split over the ranks by DeepSpeed ZeRO-3: a rank keeps a share of every weight, and gathers a layer to run it.

Decoder and vision tower are split; embeddings, head and projector, which the loops use between calls, stay whole on
each rank. A weight is divided as soon as it is read, so that no rank ever holds the model. Each call of a split module
is made by all ranks at once: see lock_step.py.
"""

import contextlib
import copy
import ctypes
import functools
import logging
import warnings
from collections.abc import Iterator

import torch
from PIL import Image
from torch import nn

from data_engine.models.base import VisionLanguageModel
from data_engine.models.sharding.lock_step import DECODE, ENCODE, LockStep
from data_engine.models.sharding.settings import require_installed

# Of malloc.h: allocations from this size on are mapped, and unmapped when freed.
M_MMAP_THRESHOLD = -3


def is_divided(name: str) -> bool:
    """Whether a weight, by its name in a family's modules, is divided."""
    return name.startswith(("decoder.", "vision.")) and not name.startswith("decoder.embed_tokens.")


class Split:
    """One job's way of splitting a model; `step` keeps its ranks in lock-step."""

    def __init__(self, settings: dict, step: LockStep, rank: int) -> None:
        require_installed()
        _unmap_freed_memory()
        self.step, self._rank, self._settings = step, rank, settings
        self._divided: list[nn.Parameter] = []

    @property
    def reads(self) -> bool:
        """Whether this rank reads the divided weights from disk; the others get their shares from it."""
        return self._rank == 0

    def divides(self, name: str) -> bool:
        """Whether a weight, by its name in a family's modules, is divided."""
        return is_divided(name)

    def divide(self, value: torch.Tensor) -> nn.Parameter:
        """A parameter of which this rank keeps its share: rank 0 gives the value, the others an empty one like it."""
        zero = deepspeed().zero
        holder = nn.Module()
        holder.weight = nn.Parameter(value, requires_grad=False)
        zero.Init(module=holder, config_dict_or_path=self._config(value.dtype))
        self._divided.append(holder.weight)
        return holder.weight

    def release(self) -> None:
        """Let go of the model that was split last: DeepSpeed keeps its modules until the process ends."""
        for parameter in self._divided:
            parameter.data = torch.empty(0)
            parameter.ds_tensor.data = torch.empty(0)
        self._divided.clear()

    def run_together(self, model: VisionLanguageModel) -> None:
        """Make each call of the model's decoder and vision tower one that all ranks make at once."""
        # Never asked by the decoder, which is given embeddings; left in, it would be divided too.
        model.decoder.embed_tokens = None
        for kind, module in ((DECODE, model.decoder), (ENCODE, model.vision)):
            # An engine each, so that the order of layers that DeepSpeed learns for prefetching is that of one module.
            with _quiet():
                deepspeed().initialize(model=module, config=self._config(model.dtype))
            # Before DeepSpeed's own hook, which gathers.
            module.register_forward_pre_hook(functools.partial(_agree_first, self.step, kind), prepend=True)
        self.step.register(DECODE, functools.partial(_dummy_decode, model))
        self.step.register(ENCODE, functools.partial(_dummy_encode, model))

    def _config(self, dtype: torch.dtype) -> dict:
        precision = {torch.bfloat16: {"bf16": {"enabled": True}}, torch.float16: {"fp16": {"enabled": True}}}
        return copy.deepcopy(self._settings) | precision.get(dtype, {}) | {"train_micro_batch_size_per_gpu": 1}


def _agree_first(step: LockStep, kind: int, _module: nn.Module, _inputs: tuple) -> None:
    step.before(kind)


@torch.inference_mode()
def _dummy_decode(model: VisionLanguageModel) -> None:
    shape = (1, 1, model.head_weight.shape[1])
    embeds = torch.zeros(shape, device=model.device, dtype=model.dtype)
    model.decoder(inputs_embeds=embeds, position_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))


@torch.inference_mode()
def _dummy_encode(model: VisionLanguageModel) -> None:
    pixels = model.pixels(Image.new("RGB", (8, 8)), True, max_megapixels=64)
    model.encode_images(pixels[None].to(model.device))


def _unmap_freed_memory() -> None:
    """Have glibc give freed tensors back to the system at once.

    It would keep those below 32 MB, in between the shares that stay: after loading, a rank on CPU would hold as much as
    the whole model.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 18)


@functools.cache
def deepspeed():
    """DeepSpeed, imported when it is needed: it takes seconds, and says much."""
    with _quiet():
        import deepspeed

        # A C++ operation for reductions between CPU ranks, which nothing here uses: it would be compiled at first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed's own call, which torch would rather see under another name.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.* is deprecated", category=FutureWarning)
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without DeepSpeed's lines on standard output, and its log below errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.disable(before)
