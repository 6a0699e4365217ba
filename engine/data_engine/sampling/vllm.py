"""vLLM as a back end: it has the weights, and draws from prompts that the family of the model made.

One engine a process, on the GPUs that the process sees; vllm_engine.py starts and ends it. What vLLM makes of a prompt
has to be, id by id, what the family makes of it. The log-probs of the drawn tokens come along, before temperature and
filters.
"""

import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from data_engine.errors import UserError
from data_engine.models.checkpoints.json_files import reason
from data_engine.models.prompt_maker import PromptMaker, TokenPrompt
from data_engine.sampling.backend import BackendSettings
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.requests import BROKEN, Completion, PromptRequest, Submitted
from data_engine.sampling.vllm_engine import Engine, engine_args

if TYPE_CHECKING:
    import vllm
    from vllm.outputs import CompletionOutput, RequestOutput

log = logging.getLogger(__name__)

# A bias of vLLM's is cut off here; it takes e^100 off a token's chance.
NEVER = -100.0


def make(settings: BackendSettings) -> "VllmBackend":
    """The back end; options: `args` of vLLM's engine, `dtype`, `seed`. Raises UserError where vLLM does not start."""
    options, folder = settings.options, settings.model.folder
    args = engine_args(folder, options["args"], options["dtype"], options["seed"])
    log.info("vLLM loads the model from %s", folder)
    return VllmBackend(Engine(args), settings.model, settings.params)


class VllmBackend:
    """Requests go into vLLM's engine as it has room for their answers; its steps run in `poll`."""

    halvings = 0

    def __init__(self, engine: Engine, model: PromptMaker, params: SamplingParams) -> None:
        self._engine, self._vllm, self._model, self._params = engine, engine.vllm, model, params
        self._most = engine.vllm.vllm_config.scheduler_config.max_num_seqs
        self._submitted = Submitted()
        self._running: dict[str, PromptRequest] = {}
        # On a CPU vLLM 0.32 takes them, and fails once it computes a prompt in pieces: it turns back a generator, which
        # a GPU's can alone.
        self.seeded = self._vllm.vllm_config.device_config.device_type != "cpu"
        """whether each question has a seed of its own"""
        if not self.seeded:
            log.warning("vLLM takes no seed for each question on a CPU: --seed has no effect")

    @property
    def wants_more(self) -> bool:
        return not self._submitted and self._in_flight < self._most

    @property
    def _in_flight(self) -> int:
        """Answers that have not ended; those of one question end one by one."""
        return self._vllm.get_num_unfinished_requests()

    def submit(self, requests: Iterable[PromptRequest]) -> None:
        self._submitted.add(requests)

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
        return self._vllm.model_config.max_model_len

    def told(self) -> dict[str, object]:
        """What a unit says of how its answers were drawn."""
        return {"by": "vllm", "seeded": self.seeded}

    def close(self) -> None:
        """End the engine's processes, and with them all that it holds on a GPU."""
        self._submitted.clear()
        self._running.clear()
        self._engine.close()

    def _fill(self) -> None:
        while self._in_flight < self._most:
            number, request = str(self._submitted.num_taken), next(self._submitted, None)
            if request is None:
                return
            self._add(number, request)
            self._running[number] = request

    def _add(self, number: str, request: PromptRequest) -> None:
        """Raises UserError where vLLM refuses the prompt."""
        prompt: TokenPrompt = request.prompt
        given: dict[str, object] = {"prompt_token_ids": list(prompt.ids)}
        if prompt.images:
            given["multi_modal_data"] = {"image": list(prompt.images)}
        try:
            rendered = self._engine.rendered(given)
            try:
                self._vllm.add_request(number, rendered, self._drawing(request))
            except (ValueError, NotImplementedError) as error:
                if not self.seeded or "seed" not in str(error).lower():
                    raise
                log.warning("this vLLM takes no seed for each question: --seed has no effect (%s)", reason(error))
                self.seeded = False
                self._vllm.add_request(number, rendered, self._drawing(request))
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"vLLM refuses a prompt that the model takes: {reason(error)}") from error

    def _drawing(self, request: PromptRequest) -> "vllm.SamplingParams":
        import vllm

        params, ends, never = self._params, self._model.eos_token_ids, self._model.banned_token_ids
        if params.forced_lengths:
            # One for all of a request's answers; what would end one earlier is never drawn.
            ends, never = (), (*never, *ends)
        return vllm.SamplingParams(
            n=len(request.keys), temperature=params.temperature, top_k=params.top_k, top_p=params.top_p,
            max_tokens=request.lengths[0] if params.forced_lengths else params.max_new_tokens,
            # vLLM counts up from it for each answer; of 63 bits, none of another question comes near.
            seed=request.keys[0] >> 1 if self.seeded else None,
            # The family's own ends, and no others.
            ignore_eos=True, stop_token_ids=list(ends), logit_bias=dict.fromkeys(never, NEVER) or None,
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
