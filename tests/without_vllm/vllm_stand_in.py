"""A stand-in for the package vllm, as far as the engine calls it: it draws at random, and scores by a model of ours.

What it is given goes through its own expansion of prompts and its own pixels, so that its log-probs are right only for
what it was shown.
"""

import os
import random
import signal
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass

import torch

from data_engine.models.native.clip_pixels import normalised
from data_engine.models.native.embedded import IMAGE_TOKEN, SplicedPrompt
from data_engine.scoring.logprobs import Scored, score_pass

# Of the runs over it.
K, LENGTH, NUM_QUESTIONS = 3, 6, 6
FIELDS = (
    "model", "dtype", "seed", "generation_config", "mm_processor_kwargs", "mm_device_do_normalize", "disable_log_stats",
    "distributed_executor_backend", "tensor_parallel_size", "pipeline_parallel_size", "max_model_len", "max_num_seqs",
    "quantization", "worker_extension_cls", "prefill_context_parallel_size",
    "enable_prefix_caching", "gpu_memory_utilization", "kv_cache_memory_bytes",
)  # fmt: skip


@dataclass
class State:
    """What the tests look at, and set."""

    model: object = None
    image_token: int = 4
    version: str = "0.32.0"
    architectures: tuple[str, ...] = ("LlavaForConditionalGeneration",)
    device_type: str = "cpu"
    computes_on: str = "cuda"
    """where answers are drawn; the engine's own models are on the CPU"""
    takes_seeds: bool = True
    refuses_to_start: Exception | None = None
    fails: Callable[[], Exception] | None = None
    """what a step raises"""
    worker: object = None
    """a process that an engine starts, and does not end"""
    started_with: dict[str, object] = field(default_factory=dict)
    """what processes that it starts inherit"""
    engines: list["Engine"] = field(default_factory=list)


class Engine:
    def __init__(self, state: State, args) -> None:
        self.state, self.args, self.given, self.closed = state, args, [], False
        self.resets: list[str] = []
        self._waiting: dict[str, tuple] = {}
        most = getattr(args, "max_num_seqs", None) or 8
        self.vllm_config = types.SimpleNamespace(
            scheduler_config=types.SimpleNamespace(max_num_seqs=most),
            device_config=types.SimpleNamespace(device_type=state.computes_on),
        )
        self.model_config = types.SimpleNamespace(max_model_len=getattr(args, "max_model_len", None) or 512)
        self.renderer = types.SimpleNamespace(render_cmpl=lambda prompts: [{"type": "token"} | one for one in prompts])
        self.engine_core = types.SimpleNamespace(shutdown=self._shutdown)
        state.engines.append(self)

    def _shutdown(self) -> None:
        self.closed = True

    def reset_prefix_cache(self) -> None:
        self.resets = [*self.resets, "prefix"]

    def reset_encoder_cache(self) -> None:
        self.resets = [*self.resets, "encoder"]

    def get_num_unfinished_requests(self) -> int:
        return sum(params.n for _, params in self._waiting.values())

    def add_request(self, number: str, prompt: dict, params) -> None:
        if "type" not in prompt:
            raise ValueError("raw prompts are taken no more: pass the outputs of Renderer.render_cmpl()")
        prompt = {name: value for name, value in prompt.items() if name != "type"}
        if params.seed is not None and not self.state.takes_seeds:
            raise ValueError("per-request seed is not supported on this platform")
        self.given.append((prompt, params))
        self._waiting[number] = (prompt, params)

    def step(self) -> list:
        """The request that came last ends first, so that nobody relies on their order."""
        if self.state.fails:
            raise self.state.fails()
        number, (prompt, params) = self._waiting.popitem()
        model, ids = self.state.model, prompt["prompt_token_ids"]
        at = ids.index(self.state.image_token)
        [image] = prompt["multi_modal_data"]["image"]
        spliced = SplicedPrompt([*ids[:at], IMAGE_TOKEN, *ids[at + 1 :]], normalised(image), model.image_tokens)
        answers = [self._drawn(params, index) for index in range(params.n)]
        scored = score_pass(model, [Scored(spliced, [ids for ids, _ in answers])])[0]
        outputs = [
            types.SimpleNamespace(
                index=index, token_ids=ids, finish_reason=why, stop_reason=None,
                logprobs=[{token: types.SimpleNamespace(logprob=float(logp))}
                          for token, logp in zip(ids, logps, strict=True)],
            )
            for index, ((ids, why), logps) in enumerate(zip(answers, scored, strict=True))
        ]  # fmt: skip
        whole = [*ids[:at], *[self.state.image_token] * model.image_tokens, *ids[at + 1 :]]
        # Of the first token there is none.
        asked = getattr(params, "prompt_logprobs", None) is not None
        told = [None, *({token: None} for token in whole[1:])] if asked else None
        return [types.SimpleNamespace(request_id=number, finished=True, prompt_token_ids=whole, outputs=outputs,
                                      prompt_logprobs=told)]  # fmt: skip

    def _drawn(self, params, index: int) -> tuple[list[int], str]:
        made = random.Random(f"{params.seed} {index}")
        ids = [made.randrange(5, 200) for _ in range(made.randrange(1, params.max_tokens + 1))]
        if not params.stop_token_ids:
            ids = [made.randrange(5, 200) for _ in range(params.max_tokens)]
        if len(ids) == params.max_tokens:
            return ids, "length"
        return [*ids, params.stop_token_ids[0]], "stop"


def install(monkeypatch) -> State:
    """Put the stand-in where `import vllm` finds it."""
    state = State()
    module, platforms, drawing = (types.ModuleType(f"vllm{name}") for name in ("", ".platforms", ".sampling_params"))
    module.__version__ = state.version
    module.EngineArgs = make_dataclass("EngineArgs", [(name, object, None) for name in FIELDS])
    module.SamplingParams = lambda **options: types.SimpleNamespace(**options)
    drawing.RequestOutputKind = types.SimpleNamespace(FINAL_ONLY="final")
    module.sampling_params = drawing
    module.ModelRegistry = types.SimpleNamespace(get_supported_archs=lambda: state.architectures)

    def start(args) -> Engine:
        state.started_with = {"blocked": signal.pthread_sigmask(signal.SIG_BLOCK, []), "environment": dict(os.environ)}
        if state.worker:
            state.worker.start()
        # As the real one, on a GPU.
        torch.set_num_threads(1)
        for name in () if "OMP_NUM_THREADS" in os.environ else ("OMP_NUM_THREADS", "VLLM_OMP_NUM_THREADS_SET_BY_VLLM"):
            os.environ[name] = "1"
        if state.refuses_to_start:
            raise state.refuses_to_start
        return Engine(state, args)

    module.LLMEngine = types.SimpleNamespace(from_engine_args=start)

    class Platform:
        @property
        def device_type(self) -> str:
            return state.device_type

    platforms.current_platform = Platform()
    for one in (module, platforms, drawing):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return state
