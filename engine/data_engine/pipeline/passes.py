"""The loop of a stage that computes something of the answers to each question: questions in, numbers of answers out.

Questions go through the model together, as far as a pass has room; where memory runs out, in two halves, and so on. A
question that cannot be used is left out with its reason. What is computed, and how, a Scorer knows.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
import torch
from torch import Tensor

from data_engine.errors import NO_ROOM, OUT_OF_MEMORY, BadRow, UserError
from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.memory_errors import naming_out_of_memory
from data_engine.pipeline.answers import by_question
from data_engine.questions.dataset import Question
from data_engine.questions.images import BadImage
from data_engine.questions.prefetch import ahead
from data_engine.scoring.arriving import read_behind
from data_engine.scoring.logprobs import Scored, row_tokens
from data_engine.store.units import Row

log = logging.getLogger(__name__)

# Tokens of one question beyond which its answers go through the model in several passes: ten answers of 8,192 tokens
# would keep some 80,000 tokens' activations at a time. Answers of up to 1,500 tokens, ten a question, stay together.
MOST_OF_A_QUESTION = 16384


class Work(Protocol):
    """A question that is ready for the model: its prompt or prompts, and its answers."""

    tokens: int
    """that it adds to a pass"""

    def halves(self) -> tuple["Work", "Work"] | None:
        """The same for the first and the second half of its answers; None where there is one answer."""

    def counted(self, found: list[Tensor]) -> list[Tensor | None]:
        """What counts of the numbers of each answer; None where nothing does."""


class Scorer(Protocol):
    """What a stage computes of the answers to a question."""

    model: VisionLanguageModel
    what: str
    """what it computes, for messages"""

    def prepare(self, question: Question, rows: list[dict]) -> Work | None:
        """None where the question's answers have no number, though nothing is wrong with it.

        Called in another thread than the others. Raises BadRow and BadImage for a question that cannot be used.
        """

    def compute(self, works: Sequence[Work]) -> list[list[Tensor]]:
        """Of each answer of each question, in their order, one number or several, fp32, on the model's device: it is
        read after the next pass was launched.
        """

    def check(self, work: Work, found: list[Tensor]) -> None:
        """Hold what was computed of a question against the plain path. Raises RuntimeError where it is no rounding."""


@dataclass(frozen=True)
class Behind:
    """Rows of ids behind one prompt, each an answer."""

    scored: Scored
    tokens: int
    uncounted: Sequence[int] = ()
    """how many numbers at the beginning of each row do not count: those of thoughts; empty: all count"""

    def halves(self) -> tuple["Behind", "Behind"] | None:
        prompt, rows = self.scored.prompt, self.scored.answers
        half = len(rows) // 2
        if not half:
            return None
        parts = ((rows[:half], self.uncounted[:half]), (rows[half:], self.uncounted[half:]))
        return tuple(Behind(Scored(prompt, ids), row_tokens(prompt.length, ids), skipped) for ids, skipped in parts)

    def counted(self, found: list[Tensor]) -> list[Tensor | None]:
        if not self.uncounted:
            return found
        behind = (numbers[start:] for numbers, start in zip(found, self.uncounted, strict=True))
        return [numbers if len(numbers) else None for numbers in behind]


@dataclass(frozen=True)
class Whole:
    """A prompt an answer, where nothing can be shared; equal answers have the same one."""

    prompts: list[Prompt]

    @property
    def tokens(self) -> int:
        return sum(prompt.length for prompt in {id(prompt): prompt for prompt in self.prompts}.values())

    def halves(self) -> tuple["Whole", "Whole"] | None:
        half = len(self.prompts) // 2
        return (Whole(self.prompts[:half]), Whole(self.prompts[half:])) if half else None

    def counted(self, found: list[Tensor]) -> list[Tensor | None]:
        return found


@dataclass(frozen=True)
class Prepared:
    """A question as it comes to a pass: the rows of its answers and its work, or what is wrong with it."""

    question: Question
    rows: list[dict]
    work: Work | None = None
    problem: str | None = None


@dataclass
class Computed:
    """What a unit comes to."""

    scored: list[tuple[dict, Tensor | None]] = field(default_factory=list)
    """each answer's row and what was computed and counts; None where there is no number of it"""
    quarantined: list[Row] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    retries: int = 0


def compute_unit(
    scorer: Scorer, questions: Iterable[Question], sampled: pa.Table, most_tokens: int, check: bool = False
) -> Computed:
    """What `scorer` computes of all answers of a unit, in their order.

    A pass has questions of up to `most_tokens` tokens, one at least. With `check`, the first question with sound
    numbers is held against the plain path.
    """
    answers = by_question(sampled)
    asked = ((question, answers[question.idx]) for question in questions if question.idx in answers)
    taking = _Taking(scorer, Computed(), checked=not check or bool(scorer.model.why_plain))

    def launched() -> Iterator[tuple[list[Prepared], list[list[Tensor] | None]]]:
        for together in _passes(ahead(lambda item: _prepare(scorer, *item), asked), most_tokens, taking.found):
            results, halved = halving(scorer, [one.work for one in together if one.work])
            taking.found.retries += halved
            yield together, results

    for together, results in read_behind(launched(), scorer.model.device):
        taking.take(together, iter(results))
    if check and taking.too_large and not taking.found.scored:
        raise UserError(NO_ROOM)
    taking.found.quarantined += taking.too_large
    return taking.found


@dataclass
class _Taking:
    """What a unit comes to, pass by pass."""

    scorer: Scorer
    found: Computed
    checked: bool
    too_large: list[Row] = field(default_factory=list)

    def take(self, together: list[Prepared], results: Iterator[list[Tensor] | None]) -> None:
        """What a pass came to, in the order of its questions."""
        for one in together:
            if one.work is None:
                self.found.scored += ((row, None) for row in one.rows)
                continue
            result = next(results)
            if result is None:
                self.too_large.append((one.question.idx, OUT_OF_MEMORY))
                continue
            if reason := _not_finite(self.scorer, one.rows, result):
                self.found.quarantined.append((one.question.idx, reason))
                continue
            if not self.checked:
                self.scorer.check(one.work, result)
                self.checked = True
            self.found.scored += zip(one.rows, one.work.counted(result), strict=True)


def _prepare(scorer: Scorer, question: Question, rows: list[dict]) -> Prepared:
    try:
        return Prepared(question, rows, scorer.prepare(question, rows))
    except (BadRow, BadImage) as problem:
        return Prepared(question, rows, problem=str(problem))


def _passes(prepared: Iterable[Prepared], most_tokens: int, left_out: Computed) -> Iterator[list[Prepared]]:
    """Neighbours that fit a pass, one at least; those that cannot be used go to `left_out`."""
    together, tokens = [], 0
    for one in prepared:
        if one.problem:
            where = left_out.missing if one.question.missing else left_out.quarantined
            where.append((one.question.idx, one.problem))
            continue
        needed = one.work.tokens if one.work else 0
        if together and tokens + needed > most_tokens:
            yield together
            together, tokens = [], 0
        together.append(one)
        tokens += needed
    if together:
        yield together


def _not_finite(scorer: Scorer, rows: list[dict], result: list[Tensor]) -> str | None:
    """Why a question is left out, where a number of its answers is none."""
    broken = next((row for row, one in zip(rows, result, strict=True) if not one.isfinite().all()), None)
    if broken is None:
        return None
    index = broken["sample_index"]
    return f"the model's {scorer.what} are not finite (NaN or infinite): answer {index}, counted from 0"


def halving(scorer: Scorer, works: Sequence[Work]) -> tuple[list[list[Tensor] | None], int]:
    """What is computed of each question's answers; how often memory ran out.

    Where it does, questions, and then a question's answers, are computed in two halves, and so on; None for a question
    of which a single answer exceeds it. Many long answers to one question are so from the start.
    """
    if not works:
        return [], 0
    halves = works[0].halves() if len(works) == 1 else None
    if halves and works[0].tokens > MOST_OF_A_QUESTION:
        return _in_halves(scorer, halves)
    try:
        with naming_out_of_memory(scorer.model):
            return scorer.compute(works), 0
    except torch.OutOfMemoryError:
        # Outside the handler, whose traceback would keep the pass's tensors.
        pass
    if scorer.model.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(works) == 1 and halves is None:
        return [None], 1
    log.warning("out of memory: %d questions are computed in two halves", len(works))
    if len(works) > 1:
        half = len(works) // 2
        (first, one), (second, other) = halving(scorer, works[:half]), halving(scorer, works[half:])
        return first + second, 1 + one + other
    found, retries = _in_halves(scorer, halves)
    return found, 1 + retries


def _in_halves(scorer: Scorer, halves: tuple[Work, Work]) -> tuple[list[list[Tensor] | None], int]:
    """The same of one question, its answers in two halves."""
    ([first], one), ([second], other) = (halving(scorer, [part]) for part in halves)
    return [first + second if first and second else None], one + other


def require_room(model: VisionLanguageModel, prompt: Prompt, ids: Sequence[Sequence[int]] = ()) -> None:
    """Raise BadRow where a prompt, or an answer behind it, does not fit."""
    size, longest, room = prompt.length, max(map(len, ids), default=0), model.max_positions
    if size + longest > room:
        raise BadRow(f"too long to score: prompt of {size} tokens, answer of {longest}, room for {room}")
