"""vLLM as a back end: it has the weights, and draws from prompts that the family of the model made.

One engine a process, on the GPUs that the process sees. What vLLM makes of a prompt has to be, id by id, what the
family makes of it. The log-probs of the drawn tokens come along, before temperature and filters.
"""

import logging
import math
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data_engine.errors import UserError
from data_engine.models.internvl_chat import MODEL_TYPE, is_own
from data_engine.models.prompt_maker import PromptMaker, TokenPrompt
from data_engine.models.registry import ModelError, read_json, reason
from data_engine.processes.ranks import unlaunched
from data_engine.sampling.backend import BackendSettings
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.requests import BROKEN, Completion, PromptRequest

if TYPE_CHECKING:
    import vllm
    from vllm.outputs import CompletionOutput, RequestOutput

log = logging.getLogger(__name__)

OLDEST = (0, 32)
# A bias of vLLM's is cut off here; it takes e^100 off a token's chance.
NEVER = -100.0
# What vLLM starts are programs of their own, whatever libraries hold in this one, and its makers are told nothing. Its
# scheduler runs in this process: in one of its own it would outlive a rank that is killed, and hold on to the GPUs.
ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def make(settings: BackendSettings) -> "VllmBackend":
    """The back end; options: `args` of vLLM's engine, `dtype`, `seed`. Raises UserError where vLLM does not start."""
    options, folder = settings.options, settings.model.folder
    args = engine_args(folder, options["args"], options["dtype"], options["seed"])
    log.info("vLLM loads the model from %s", folder)
    return VllmBackend(start(args), settings.model, settings.params)


def engine_args(folder: Path, args: Mapping[str, object], dtype: str, seed: int) -> dict[str, object]:
    """Arguments of vLLM's engine: those of the user, and those that the run decides."""
    return {
        # Workers are processes, which end with this one, and whose memory is free once they have ended.
        "distributed_executor_backend": "mp",
        **args, "model": str(folder), "dtype": dtype,
        # Of what has no seed of its own; numpy takes 32 bits.
        "seed": seed % 2**32,
        # The checkpoint's defaults for sampling never enter.
        "generation_config": "vllm",
        # Pillow's image processor, as the family's own.
        "mm_processor_kwargs": {"use_fast": False},
        # Else vLLM 0.32 normalises by what the checkpoint's file spells out, and not at all where that says nothing.
        "mm_device_do_normalize": False,
        "disable_log_stats": True,
    }  # fmt: skip


def start(args: Mapping[str, object]) -> "vllm.LLMEngine":
    """An engine. Raises UserError where it does not start: memory that is too small, arguments that do not fit."""
    vllm = load_vllm()
    # A Ctrl-C reaches every process of a terminal; the engine's end when this one lets them.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        with unlaunched(**ENVIRONMENT):
            known = vllm.EngineArgs.__dataclass_fields__
            return vllm.LLMEngine.from_engine_args(
                vllm.EngineArgs(**{name: value for name, value in args.items() if name in known})
            )
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"vLLM {vllm.__version__} does not start ({reason(error)}); what it said stands above. Settings of its "
            "engine go into --vllm_args"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def load_vllm():
    """The package. Raises UserError where it is not installed, does not import, or is too old."""
    try:
        with unlaunched(**ENVIRONMENT):
            import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise UserError(f"vLLM cannot be imported: {reason(error)}; install it again") from error
        raise UserError(
            "sampler vllm needs vLLM, which is not installed: pip install 'vlm-data-engine[vllm]'"
        ) from None
    # A compiled part that does not fit torch or the machine.
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"vLLM cannot be imported: {reason(error)}; install it again") from error
    found = tuple(int(part) for part in vllm.__version__.split(".")[:2] if part.isdigit())
    if found < OLDEST:
        raise UserError(
            f"vLLM {vllm.__version__} is installed, and sampler vllm needs {'.'.join(map(str, OLDEST))} or newer: "
            "pip install -U 'vlm-data-engine[vllm]'"
        )
    return vllm


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


class VllmBackend:
    """Requests go into vLLM's engine as it has room for their answers; its steps run in `poll`."""

    halvings = 0

    def __init__(self, engine: "vllm.LLMEngine", model: PromptMaker, params: SamplingParams) -> None:
        self._engine, self._model, self._params = engine, model, params
        self._most = engine.vllm_config.scheduler_config.max_num_seqs
        self._waiting: deque[Iterator[PromptRequest]] = deque()
        self._running: dict[str, PromptRequest] = {}
        self._taken = 0
        self.seeded = True
        """whether each question has a seed of its own"""

    @property
    def wants_more(self) -> bool:
        return not self._waiting and self._in_flight < self._most

    @property
    def _in_flight(self) -> int:
        return sum(len(request.keys) for request in self._running.values())

    def submit(self, requests: Iterable[PromptRequest]) -> None:
        self._waiting.append(iter(requests))

    def poll(self) -> list[Completion]:
        while True:
            self._fill()
            if not self._running:
                return []
            ended = [output for output in self._engine.step() if output.finished]
            if ended or self.wants_more:
                return [found for output in ended for found in self._completions(output)]

    @property
    def max_positions(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._engine.model_config.max_model_len

    def told(self) -> dict[str, object]:
        """What a unit says of how its answers were drawn."""
        return {"by": "vllm", "seeded": self.seeded}

    def close(self) -> None:
        """End the engine's processes, and with them all that it holds on a GPU."""
        self._waiting.clear()
        self._running.clear()
        self._engine.engine_core.shutdown()

    def _fill(self) -> None:
        while self._waiting and self._in_flight < self._most:
            request = next(self._waiting[0], None)
            if request is None:
                self._waiting.popleft()
                continue
            number, self._taken = str(self._taken), self._taken + 1
            self._add(number, request)
            self._running[number] = request

    def _add(self, number: str, request: PromptRequest) -> None:
        """Raises UserError where vLLM refuses the prompt."""
        prompt: TokenPrompt = request.prompt
        given: dict[str, object] = {"prompt_token_ids": list(prompt.ids)}
        if prompt.images:
            given["multi_modal_data"] = {"image": list(prompt.images)}
        try:
            self._engine.add_request(number, given, self._drawing(request))
        except (ValueError, NotImplementedError) as error:
            if self.seeded and "seed" in str(error).lower():
                log.warning("this vLLM takes no seed for each question: --seed has no effect (%s)", reason(error))
                self.seeded = False
                self._add(number, request)
                return
            raise UserError(f"vLLM refuses a prompt that the model takes: {reason(error)}") from error

    def _drawing(self, request: PromptRequest) -> "vllm.SamplingParams":
        import vllm

        params = self._params
        return vllm.SamplingParams(
            n=len(request.keys), temperature=params.temperature, top_k=params.top_k, top_p=params.top_p,
            max_tokens=params.max_new_tokens,
            # vLLM counts up from it for each answer; of 63 bits, none of another question comes near.
            seed=request.keys[0] >> 1 if self.seeded else None,
            # The family's own ends, and no others.
            ignore_eos=True, stop_token_ids=list(self._model.eos_token_ids),
            logit_bias=dict.fromkeys(self._model.banned_token_ids, NEVER) or None,
            # Of the drawn token alone.
            logprobs=0, detokenize=False,
            output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip

    def _completions(self, output: "RequestOutput") -> list[Completion]:
        request = self._running.pop(output.request_id)
        _require_same_prompt(output.prompt_token_ids, request.prompt.expanded)
        return [_completion(int(output.request_id), answer) for answer in output.outputs]


def _completion(request: int, answer: "CompletionOutput") -> Completion:
    ids, why = list(answer.token_ids), answer.finish_reason
    if why not in ("stop", "length"):
        raise RuntimeError(f"vLLM gave up an answer ({why}, {answer.stop_reason})")
    logps = [step[token].logprob for token, step in zip(ids, answer.logprobs, strict=True)]
    broken = next((place for place, value in enumerate(logps) if not math.isfinite(value)), None)
    if broken is not None:
        return Completion(request, answer.index, ids[:broken], BROKEN)
    return Completion(request, answer.index, ids, why, logps)


def _require_same_prompt(theirs: list[int], ours: list[int]) -> None:
    """Raise UserError where vLLM drew behind another prompt than the one that answers are scored behind."""
    if theirs == ours:
        return
    place = next((at for at, (one, other) in enumerate(zip(theirs, ours, strict=False)) if one != other), None)
    told = f"{len(theirs)} tokens against {len(ours)}" if place is None else f"token {place}, counted from 0"
    raise UserError(
        f"vLLM makes another prompt than the engine, which scores answers ({told}): its processor for this model is "
        "another one. Use another version of vLLM or of transformers, or leave --sampler out"
    )
