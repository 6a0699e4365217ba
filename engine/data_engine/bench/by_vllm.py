"""The ways of `data-engine bench --vllm`: vLLM draws as many tokens from the same questions, with the same weights.

In: the bench's subject. Its start is outside the clock, and so is its processor, as the engine's is. What it keeps of
prompts is dropped before each round, so that each computes them.
"""

import io
import multiprocessing
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from data_engine.bench.model import QUESTION, Subject
from data_engine.bench.ways import SAMPLING
from data_engine.errors import UserError
from data_engine.models import family_class
from data_engine.processes.ranks import unlaunched
from data_engine.questions.conversation import Conversation
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.requests import PromptRequest
from data_engine.sampling.vllm import VllmBackend
from data_engine.sampling.vllm_engine import Engine, engine_args, require_usable
from data_engine.seeds import seed_for

# Of the card's memory, where the engine's and transformers' models are loaded too.
GPU_SHARE = 0.35
# For its cache on a CPU, where it would take nine tenths of the machine's memory.
CPU_CACHE_BYTES = 4 << 30


class ByVllm:
    """An engine of vLLM with the subject's checkpoint, which works as it does in a run."""

    def __init__(self, subject: Subject) -> None:
        """Raises UserError where vLLM is missing, does not take the checkpoint, or has no room for it."""
        model, sizes = subject.engine, subject.sizes
        self._maker = family_class(model.family).prompt_maker(subject.folder)
        self.version = require_usable(subject.folder, {}, model.device.type)
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in subject.photos]
        self._prompts = [self._maker.prompt(Conversation.of(QUESTION), [picture], True, 64) for picture in pictures]
        self._engine = self._started(subject)
        self._answers_BKL = subject.answers_BKL
        try:
            # Each picture goes through vLLM's processor, which keeps what it makes; k answers, as they are timed.
            self.sample(torch.full((len(self._prompts), sizes.k), 2))
            self.score()
        except BaseException:
            # The bench may go on without it.
            self.close()
            raise

    def _started(self, subject: Subject) -> Engine:
        model, sizes, threads = subject.engine, subject.sizes, torch.get_num_threads()
        longest = max(sizes.most_tokens, sizes.new_tokens, sizes.answer_tokens + 1)
        args: dict[str, object] = {"max_model_len": subject.prefix_tokens + longest, "enable_prefix_caching": True}
        environment = {}
        if model.device.type == "cuda":
            # The other ways' weights and caches lie beside it; without this, vLLM takes 0.9 of the whole card.
            args["gpu_memory_utilization"] = GPU_SHARE
        else:
            args["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
            # As many as the other ways have; by itself it leaves a core free, and binds its threads to the others.
            environment = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        dtype = str(model.dtype).removeprefix("torch.")
        before = set(multiprocessing.active_children())
        try:
            with unlaunched(**environment):
                return Engine(engine_args(subject.folder, args, dtype, seed=0))
        except UserError:
            # Of a start that fails half-way they keep memory until this process ends, and the bench may go on.
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
                child.join()
            raise
        finally:
            # vLLM leaves this process one, and the engine's ways are timed beside it.
            torch.set_num_threads(threads)

    def close(self) -> None:
        self._engine.close()

    def sample(self, lengths_BK: Tensor) -> int:
        """Draw answers of these lengths; how many tokens that are."""
        self._engine.vllm.reset_prefix_cache()
        self._engine.vllm.reset_encoder_cache()
        params = SamplingParams(**SAMPLING, max_new_tokens=int(lengths_BK.max()), forced_lengths=True)
        backend = VllmBackend(self._engine, self._maker, params)
        backend.submit(self._requests(lengths_BK.tolist()))
        found = []
        while len(found) < lengths_BK.numel():
            found += backend.poll()
        return sum(len(answer.token_ids) for answer in found)

    def score(self) -> int:
        """Log-probs of the subject's answers by prompt_logprobs; how many tokens were scored.

        vLLM reads no cached prefix where it is asked for prompt_logprobs, so each answer computes its prompt again.
        """
        import vllm

        self._engine.vllm.reset_prefix_cache()
        self._engine.vllm.reset_encoder_cache()
        asked = vllm.SamplingParams(n=1, seed=None, max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False,
                                    ignore_eos=True, stop_token_ids=[],
                                    output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY)  # fmt: skip
        waiting: dict[str, int] = {}
        for question, answers in enumerate(self._answers_BKL.tolist()):
            prompt = self._prompts[question]
            for number, ids in enumerate(answers):
                given: dict[str, object] = {"prompt_token_ids": [*prompt.ids, *ids]}
                if prompt.images:
                    given["multi_modal_data"] = {"image": list(prompt.images)}
                name = f"scored-{question}-{number}"
                self._engine.vllm.add_request(name, self._engine.rendered(given), asked)
                waiting[name] = len(ids)
        scored = 0
        while waiting:
            for output in self._engine.step():
                if output.finished:
                    # The last ones of the prompt, of which its own tokens come first.
                    scored += len(output.prompt_logprobs[-waiting.pop(output.request_id) :])
        return scored

    def _requests(self, lengths_BK: list[list[int]]) -> Iterator[PromptRequest]:
        for question, lengths in enumerate(lengths_BK):
            keys = [seed_for(0, question, index) for index in range(len(lengths))]
            if len(set(lengths)) == 1:
                yield PromptRequest(self._prompts[question], keys, lengths)
                continue
            # vLLM knows one greatest length a request; requests with the same prompt share it all the same.
            for key, length in zip(keys, lengths, strict=True):
                yield PromptRequest(self._prompts[question], [key], [length])
