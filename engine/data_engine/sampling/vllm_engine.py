"""vLLM's engine: what it is started with, its start, its end, and what it is refused for before any work."""

import atexit
import contextlib
import logging
import multiprocessing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data_engine.errors import LostRankError, UserError
from data_engine.models.checkpoints.json_files import ModelError, read_json, reason
from data_engine.models.internvl_chat import MODEL_TYPE, is_own
from data_engine.models.memory_errors import is_out_of_memory
from data_engine.processes import job_signals
from data_engine.processes.ranks import unlaunched

if TYPE_CHECKING:
    import vllm
    from vllm.inputs import EngineInput
    from vllm.outputs import RequestOutput

log = logging.getLogger(__name__)

OLDEST = (0, 32)
# What vLLM starts are programs of their own, whatever libraries hold in this one, and its makers are told nothing. Its
# scheduler runs in this process: in one of its own it would outlive a rank that is killed, and hold on to the GPUs.
ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
# What it sets itself for its workers, where nobody has: this rank has threads of its own, and starts other processes.
THREADS = ("OMP_NUM_THREADS", "VLLM_OMP_NUM_THREADS_SET_BY_VLLM")
# An argument that versions of vLLM need not have; without any other that the run sets, vLLM does not start.
DISPENSABLE = {"mm_device_do_normalize"}
# For a worker to be gone after it was told to end; vLLM itself allows less.
PATIENCE_S = 60.0


def engine_args(folder: Path, args: Mapping[str, object], dtype: str, seed: int) -> dict[str, object]:
    """Arguments of vLLM's engine: those of the user, and those that the run decides."""
    return {
        **args, "model": str(folder), "dtype": dtype,
        # Workers are processes, whose memory is free once they have ended, and which end with this one.
        "distributed_executor_backend": "mp",
        "worker_extension_cls": "data_engine.sampling.vllm_worker.EndsWithRank",
        # Of what has no seed of its own; numpy takes 32 bits.
        "seed": seed % 2**32,
        # The checkpoint's defaults for sampling never enter.
        "generation_config": "vllm",
        # Pillow's image processor, as the family's own. transformers calls this old, but its new word, backend "pil",
        # reaches the tokenizer and the processor of videos too, which have none of that name.
        "mm_processor_kwargs": {"use_fast": False},
        # Else vLLM 0.32 normalises by what the checkpoint's file spells out, and not at all where that says nothing.
        "mm_device_do_normalize": False,
        "disable_log_stats": True,
    }  # fmt: skip


class Engine:
    """A started engine, and the processes that it consists of."""

    def __init__(self, args: Mapping[str, object]) -> None:
        """Raises UserError where it does not start: memory that is too small, arguments that do not fit."""
        self._threads = torch.get_num_threads()
        before = set(multiprocessing.active_children())
        self.vllm = _start(args)
        self._workers = [child for child in multiprocessing.active_children() if child not in before]
        # In its place multiprocessing would wait for workers that it has sent a SIGTERM, which is held from them.
        atexit.register(self.close)

    def rendered(self, prompt: Mapping[str, object]) -> "EngineInput":
        """What vLLM's processor makes of a prompt, as requests take it. Raises ValueError where it refuses it."""
        [made] = self.vllm.renderer.render_cmpl([prompt])
        return made

    def step(self) -> "list[RequestOutput]":
        """What vLLM's next step gives out.

        Raises UserError where memory ran out, and LostRankError where a worker is gone: vLLM calls both RuntimeError.
        """
        try:
            return self.vllm.step()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise UserError(
                    f"vLLM ran out of memory ({reason(error)}): lower gpu_memory_utilization, max_num_seqs or "
                    "max_num_batched_tokens in --vllm_args"
                ) from error
            gone = [worker for worker in self._workers if not worker.is_alive()]
            if not gone:
                raise
            codes = ", ".join(f"{worker.name}: {worker.exitcode}" for worker in gone)
            raise LostRankError(
                f"a worker of vLLM's has ended (exit code of {codes}), as where the kernel kills one for its memory; "
                "what vLLM said stands above"
            ) from error

    def close(self) -> None:
        """End the workers, and return when they are gone: what they held on a GPU is free then."""
        self.vllm.engine_core.shutdown()
        for worker in self._workers:
            worker.join(PATIENCE_S)
            if worker.is_alive():
                worker.kill()
                worker.join()
        # Last: a stop that comes meanwhile leaves the rest to the end of the process.
        atexit.unregister(self.close)
        # vLLM leaves this process one thread, and the models that score here need theirs.
        torch.set_num_threads(self._threads)


def _start(args: Mapping[str, object]) -> "vllm.LLMEngine":
    vllm = load_vllm()
    try:
        # The workers hold the signals for good. One that comes meanwhile arrives here once the engine has started.
        with unlaunched(*THREADS, **ENVIRONMENT), job_signals.held():
            unknown = DISPENSABLE - set(vllm.EngineArgs.__dataclass_fields__)
            given = {name: value for name, value in args.items() if name not in unknown}
            return vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**given))
    # A worker that fails is told by a plain Exception, and arguments by any kind of it.
    except Exception as error:
        log.debug("vLLM does not start", exc_info=True)
        raise UserError(
            f"vLLM {vllm.__version__} does not start ({reason(error) or type(error).__name__}); what it said stands "
            "above. Settings of its engine go into --vllm_args"
        ) from error


def load_vllm():
    """The package. Raises UserError where it is not installed, does not import, or is too old."""
    with _telling_what_is_missing():
        import vllm
    found = tuple(int(part) for part in vllm.__version__.split(".")[:2] if part.isdigit())
    if found < OLDEST:
        raise UserError(
            f"vLLM {vllm.__version__} is installed, and sampler vllm needs {'.'.join(map(str, OLDEST))} or newer: "
            "pip install -U 'vlm-data-engine[vllm]'"
        )
    with _telling_what_is_missing():
        # It imports its parts as they are asked for.
        _ = vllm.EngineArgs, vllm.ModelRegistry
    return vllm


@contextlib.contextmanager
def _telling_what_is_missing() -> Iterator[None]:
    """Inside, vLLM is imported. Raises UserError where it, or what it needs, is not there or does not import."""
    try:
        with unlaunched(**ENVIRONMENT):
            yield
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise UserError(f"vLLM cannot be imported: {reason(error)}; install it again") from error
        raise UserError(
            "sampler vllm needs vLLM, which is not installed: pip install 'vlm-data-engine[vllm]'"
        ) from None
    # A compiled part that does not fit torch or the machine.
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"vLLM cannot be imported: {reason(error)}; install it again") from error


def require_usable(folder: Path, args: Mapping[str, object], device_type: str) -> str:
    """Raise UserError where vLLM is missing, does not know the model or an argument, or computes elsewhere.

    Returns its version. Nothing is loaded.
    """
    vllm = load_vllm()
    raw = read_json(folder / "config.json")
    if is_own(raw):
        raise ModelError(
            f"{folder} is in InternVL's own layout ({MODEL_TYPE}), which vLLM reads by the code that comes with it: "
            "remote code is never run; leave --sampler out for it, or pass InternVL's -HF checkpoint"
        )
    named = raw.get("architectures") or []
    from vllm.platforms import current_platform

    if set(named).isdisjoint(vllm.ModelRegistry.get_supported_archs()):
        raise ModelError(
            f"{folder} is of the architecture {', '.join(map(str, named)) or 'that config.json does not name'}, which "
            f"vLLM {vllm.__version__} does not know: leave --sampler out for it, or install a vLLM that does"
        )
    if unknown := [name for name in args if name not in vllm.EngineArgs.__dataclass_fields__]:
        raise UserError(f"vllm_args has {', '.join(unknown)}, which vLLM {vllm.__version__} does not know")
    if current_platform.device_type != device_type:
        raise UserError(
            f"the run is on {device_type}, and the vLLM here computes on {current_platform.device_type}: "
            "set --device to that, or install the vLLM for this device"
        )
    return vllm.__version__
