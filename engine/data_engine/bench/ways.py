"""The ways that `data-engine bench` times: the engine's, and stock transformers at their best settings.

Stock: the model's default attention (sdpa where it has it), KV cache, inference mode, the same threads and dtype,
prompts of equal length so that nothing is padded.
Each way returns how many tokens it scored or drew. Shapes as in model.py.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from data_engine.bench.model import Sizes, Subject
from data_engine.bench.steady import Refills, refills
from data_engine.models.auto.forward.own_decoding import whole_rows
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import PromptRequest
from data_engine.scoring.arriving import Arriving
from data_engine.scoring.logprobs import Scored, pass_tokens, score_pass
from data_engine.seeds import seed_for
from data_engine.store.units import split_units

SAMPLING = {"temperature": 0.7, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Way:
    """One way of doing a piece of work; `what` describes it, and with `once` one round is measured."""

    work: str
    what: str
    once: bool = False


WAYS = {
    "engine, scoring": Way("scoring", "image and prompt once a question, its answers packed behind that prefix"),
    "one at a time, twice": Way(
        "scoring", "the reference's way: each answer in two passes with the image, full logits"
    ),
    "padded batch": Way("scoring", "a question's answers as one batch with the image in each row, logits_to_keep"),
    "engine, sampling": Way("sampling", "one prefix cache a question, read by its answers, all questions in flight"),
    "generate, one question": Way("sampling", "generate(num_return_sequences=k), a question at a time"),
    "generate, batches": Way("sampling", "generate(num_return_sequences=k) over a batch of eight questions", True),
    "engine, drawn lengths": Way("drawn lengths", "log-normal, mean 120, p95 260, cut at 512; rows refilled"),
    "engine, two units": Way("two units", "the same as two units, the second behind the end of the first", True),
    "generate, one, drawn": Way("drawn lengths", "a question at a time: each waits for its longest answer"),
    "generate, four, drawn": Way("drawn lengths", "batches of four questions: all wait for the longest", True),
    "engine, whole job": Way("whole job", "sampling, scoring by two models, pairing, files on disk; drawn lengths"),
    "reference, whole job": Way("whole job", "generate a question at a time, then one at a time, twice, by two models"),
}
# With --vllm, beside them.
VLLM_WAYS = {
    "vllm, sampling": Way("sampling", "vLLM, started before the clock: its own queue, batches and prefix cache"),
    "vllm, prompt_logprobs": Way("scoring", "each answer behind its prompt as one prompt, by prompt_logprobs"),
    "vllm, drawn lengths": Way("drawn lengths", "the same, each answer a request, which vLLM shares the prompt of"),
}
ALL_WAYS = WAYS | VLLM_WAYS


class ForcedLengths(LogitsProcessor):
    """For generate: each answer ends by EOS exactly at its length, and holds no token that stands for an image."""

    def __init__(self, lengths_N: Tensor, prompt: int, eos: int, never: Sequence[int] = ()) -> None:
        self.lengths_N, self.prompt, self.eos, self.never = lengths_N, prompt, eos, list(never)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        last = input_ids.shape[1] - self.prompt >= self.lengths_N - 1
        at_eos = scores[:, self.eos].masked_fill(~last, -torch.inf)
        scores = scores.masked_fill(last[:, None], -torch.inf)
        scores[:, self.eos] = torch.where(last, 0.0, at_eos)
        # The engine draws none either; the whole row that is scored behind it would ask for another image.
        scores[:, self.never] = -torch.inf
        return scores


def sampling_params(sizes: Sizes) -> SamplingParams:
    """What the engine draws with, in every way."""
    most = max(sizes.most_tokens, sizes.new_tokens)
    return SamplingParams(**SAMPLING, max_new_tokens=most, forced_lengths=True)


def half_of(questions: int) -> int:
    """The unit size that cuts so many questions into two units."""
    return -(-questions // 2)


def _read_behind(launched: Iterable[list[list[Tensor]]], lag: int) -> None:
    """Read the numbers of each pass once `lag` more were launched."""
    waiting: deque[Arriving] = deque()
    for numbers in launched:
        waiting.append(Arriving(numbers))
        if len(waiting) > lag:
            waiting.popleft().read()
    for arriving in waiting:
        arriving.read()


class Ways:
    """The subject, and a function for each way but the whole job's."""

    def __init__(self, subject: Subject, sampler: SamplingEngine, tokens_a_pass: int = 0) -> None:
        self.subject, self.engine, self.stock = subject, subject.engine, subject.stock
        sizes, typical = subject.sizes, subject.typical
        self.sampler, self.tokens_a_pass = sampler, tokens_a_pass
        # One set of values for every way and the whole job: others would make new caches and captures, and in turns.
        self.params = sampling_params(sizes)
        self.refills: Refills | None = None
        """of the last unit of drawn lengths"""
        self.fixed_BK = fixed_BK = torch.full((sizes.questions, sizes.k), sizes.new_tokens)
        self.drawn_BK = drawn_BK = torch.from_numpy(subject.lengths_BK)
        four = range(min(4, sizes.drawn_questions))
        self.by_name: dict[str, Callable[[], int]] = {
            "engine, scoring": self.score_by_engine,
            "one at a time, twice": lambda: self.score_one_at_a_time_twice(self.subject.answers_BKL[0]),
            "padded batch": self.score_padded_batch,
            "engine, sampling": lambda: self.sample_by_engine(fixed_BK),
            # One question: the rate is the same for any number.
            "generate, one question": lambda: self.generate([0], fixed_BK),
            "generate, batches": lambda: self.generate(range(min(8, sizes.questions)), fixed_BK),
            "engine, drawn lengths": self._sample_noted,
            "engine, two units": lambda: self.sample_by_engine(drawn_BK, half_of(len(drawn_BK))),
            "generate, one, drawn": lambda: self.generate([typical], drawn_BK),
            "generate, four, drawn": lambda: self.generate(four, drawn_BK),
            "reference, whole job": lambda: self.reference_job(typical, drawn_BK),
        }

    @torch.inference_mode()
    def largest_difference(self) -> float | None:
        """Between the engine's log-probs of the first question's answers and transformers', nat."""
        if self.stock is None:
            return None
        expected = torch.cat([self._one(0, answer).cpu() for answer in self.subject.answers_BKL[0]])
        return (torch.cat(score_pass(self.engine, [self._asked(0)])[0]).cpu() - expected).abs().max().item()

    # Scoring.

    def score_by_engine(self) -> int:
        """As a stage of log-probs does: several questions a pass where its budget says so, read behind the next one."""
        launched = (score_pass(self.engine, together) for together in self._passes())
        _read_behind(launched, lag=int(self.engine.device.type == "cuda"))
        return self.subject.answers_BKL.numel()

    def _passes(self) -> Iterator[list[Scored]]:
        """All have equally many tokens."""
        asked = [self._asked(question) for question in range(len(self.subject.answers_BKL))]
        number = max(1, self.tokens_a_pass // pass_tokens(asked[0].prompt.length, asked[0].answers))
        for start in range(0, len(asked), number):
            yield asked[start : start + number]

    def _asked(self, question: int) -> Scored:
        return Scored(self.subject.prompts[question], self.subject.answers_BKL[question].tolist())

    @torch.inference_mode()
    def score_one_at_a_time_twice(self, answers: list[Tensor] | Tensor, question: int = 0) -> int:
        for answer in answers:
            for _ in range(2):
                self._one(question, answer)
        return sum(map(len, answers))

    def _one(self, question: int, answer_L: Tensor) -> Tensor:
        answer_L = answer_L.to(self.engine.device)
        given = whole_rows(self.stock, self.subject.stock_inputs([question]), answer_L[None])
        logps = self.stock(**given).logits[0].float().log_softmax(-1)
        return logps[self.subject.prefix_tokens - 1 : -1].gather(-1, answer_L[:, None])[:, 0]

    @torch.inference_mode()
    def score_padded_batch(self) -> int:
        answers_KL = self.subject.answers_BKL[0].to(self.engine.device)
        k, length = answers_KL.shape
        given = whole_rows(self.stock, self.subject.stock_inputs([0] * k), answers_KL)
        logits = self.stock(**given | {"logits_to_keep": length + 1}).logits
        logits[:, :-1].float().log_softmax(-1).gather(-1, answers_KL[..., None])
        return answers_KL.numel()

    # Sampling.

    def sample_by_engine(self, lengths_BK: Tensor, unit_size: int | None = None) -> int:
        """All answers from one queue, as `run` does on a GPU, or unit by unit, as on a CPU."""
        requests = [
            PromptRequest(
                self.subject.prompts[question],
                [seed_for(0, question, index) for index in range(len(lengths))],
                lengths,
            )
            for question, lengths in enumerate(lengths_BK.tolist())
        ]
        units = split_units(len(requests), unit_size or len(requests))
        sampled = (self.sampler.sample(requests[unit.start : unit.stop], self.params) for unit in units)
        return sum(len(found.token_ids) for unit in sampled for found in unit)

    def _sample_noted(self) -> int:
        with refills() as self.refills:
            return self.sample_by_engine(self.drawn_BK)

    def generate(self, questions: list[int] | range, lengths_BK: Tensor) -> int:
        self._generate(questions, lengths_BK)
        return int(lengths_BK[list(questions)].sum())

    @torch.inference_mode()
    def _generate(self, questions: list[int] | range, lengths_BK: Tensor) -> Tensor:
        """Ids behind the prompt [B * K, longest]."""
        lengths_N = lengths_BK[list(questions)].flatten().to(self.engine.device)
        prompt, eos = self.subject.prefix_tokens, self.engine.eos_token_ids[0]
        # Some models embed their image token and have no logit for it.
        never = [number for number in self.subject.image_ids if number < self.engine.num_ids]
        out = self.stock.generate(
            **self.subject.stock_inputs(questions), use_cache=True, do_sample=True,
            num_return_sequences=lengths_BK.shape[1], eos_token_id=eos, pad_token_id=0,
            max_new_tokens=int(lengths_N.max()), **SAMPLING,
            logits_processor=[ForcedLengths(lengths_N, prompt, eos, never)],
        )  # fmt: skip
        return out[:, prompt:]

    def reference_job(self, question: int, lengths_BK: Tensor) -> int:
        out_KL = self._generate([question], lengths_BK)
        answers = [row[:length] for row, length in zip(out_KL, lengths_BK[question].tolist(), strict=True)]
        for _ in range(2):
            self.score_one_at_a_time_twice(answers, question)
        return sum(map(len, answers))
