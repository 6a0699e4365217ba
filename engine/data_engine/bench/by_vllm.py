"""The ways of `data-engine bench --vllm`: vLLM draws as many tokens from the same questions, with the same weights.

In: the bench's subject. Its start is outside the clock, and so is its processor, as the engine's is. What it keeps of
prompts is dropped before each round, so that each computes them.
"""

import io
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from data_engine.bench.model import QUESTION, Subject
from data_engine.bench.ways import SAMPLING
from data_engine.models import family_class
from data_engine.questions.conversation import Conversation
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.requests import PromptRequest
from data_engine.sampling.vllm import VllmBackend
from data_engine.sampling.vllm_engine import Engine, engine_args, require_usable
from data_engine.seeds import seed_for


class ByVllm:
    """An engine of vLLM with the subject's checkpoint, which works as it does in a run."""

    def __init__(self, subject: Subject) -> None:
        """Raises UserError where vLLM is missing, or does not take the checkpoint."""
        model, sizes = subject.engine, subject.sizes
        self._maker = family_class(model.family).prompt_maker(subject.folder)
        self.version = require_usable(subject.folder, {}, model.device.type)
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in subject.photos]
        self._prompts = [self._maker.prompt(Conversation.of(QUESTION), [picture], True, 64) for picture in pictures]
        threads = torch.get_num_threads()
        args = {"max_model_len": subject.prefix_tokens + max(sizes.most_tokens, sizes.new_tokens)}
        dtype = str(model.dtype).removeprefix("torch.")
        self._engine = Engine(engine_args(subject.folder, args, dtype, seed=0))
        # vLLM leaves this process one, and the engine's ways are timed beside it.
        torch.set_num_threads(threads)
        # Each picture goes through vLLM's processor, which keeps what it makes.
        self.sample(torch.full((len(self._prompts), 1), 2))

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

    def _requests(self, lengths_BK: list[list[int]]) -> Iterator[PromptRequest]:
        for question, lengths in enumerate(lengths_BK):
            keys = [seed_for(0, question, index) for index in range(len(lengths))]
            if len(set(lengths)) == 1:
                yield PromptRequest(self._prompts[question], keys, lengths)
                continue
            # vLLM knows one greatest length a request; requests with the same prompt share it all the same.
            for key, length in zip(keys, lengths, strict=True):
                yield PromptRequest(self._prompts[question], [key], [length])
