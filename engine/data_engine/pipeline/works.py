"""What goes through a model together: questions with their answers; in two halves where memory runs out, and so on."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from data_engine.errors import BadRow
from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.memory_errors import naming_out_of_memory
from data_engine.questions.dataset import Question
from data_engine.scoring.logprobs import Scored, row_tokens

log = logging.getLogger(__name__)


class Work(Protocol):
    """A question that is ready for the model: its prompt or prompts, and its answers."""

    tokens: int
    """that it adds to a pass"""
    left_out: Mapping[int, str]
    """answers of which nothing is computed, by their places among the question's, and why"""

    def halves(self) -> tuple["Work", "Work"] | None:
        """The work of the first and of the second half of its answers; None where there is one answer."""

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
    left_out: Mapping[int, str] = field(default_factory=dict)
    """the question's answers that are none of the rows, by their places among all, and why"""
    each: int = 1
    """rows of each answer, which stand together"""

    def halves(self) -> tuple["Behind", "Behind"] | None:
        prompt, rows = self.scored.prompt, self.scored.answers
        half = _half(rows, self.each)
        if not half:
            return None
        parts = ((rows[:half], self.uncounted[:half]), (rows[half:], self.uncounted[half:]))
        return tuple(
            Behind(Scored(prompt, ids), row_tokens(prompt.length, ids), skipped, each=self.each)
            for ids, skipped in parts
        )

    def counted(self, found: list[Tensor]) -> list[Tensor | None]:
        if not self.uncounted:
            return found
        behind = (numbers[start:] for numbers, start in zip(found, self.uncounted, strict=True))
        return [numbers if len(numbers) else None for numbers in behind]


@dataclass(frozen=True)
class Whole:
    """A prompt an answer, where nothing can be shared, or `each` that stand together; equal answers have the same."""

    prompts: list[Prompt]
    left_out: Mapping[int, str] = field(default_factory=dict)
    each: int = 1

    @property
    def tokens(self) -> int:
        return sum(prompt.length for prompt in {id(prompt): prompt for prompt in self.prompts}.values())

    def halves(self) -> tuple["Whole", "Whole"] | None:
        half = _half(self.prompts, self.each)
        if not half:
            return None
        return tuple(Whole(prompts, each=self.each) for prompts in (self.prompts[:half], self.prompts[half:]))

    def counted(self, found: list[Tensor]) -> list[Tensor | None]:
        return found


def _half(rows: Sequence, each: int) -> int:
    """How many of the rows belong to the first half of the answers."""
    return len(rows) // each // 2 * each


def halving(scorer: Scorer, works: Sequence[Work]) -> tuple[list[list[Tensor] | None], int]:
    """What is computed of each question's answers; how often memory ran out.

    Where it does, questions, and then a question's answers, are computed in two halves, and so on; None for a question
    of which a single answer exceeds it.
    """
    if not works:
        return [], 0
    halves = works[0].halves() if len(works) == 1 else None
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
    """What is computed of one question, its answers in two halves; and how often memory ran out."""
    ([first], one), ([second], other) = (halving(scorer, [part]) for part in halves)
    return [first + second if first and second else None], one + other


def require_room(model: VisionLanguageModel, prompt: Prompt, ids: Sequence[Sequence[int]] = ()) -> None:
    """Raise BadRow where a prompt, or an answer behind it, does not fit."""
    if told := lacks_room(model, prompt, max(ids, key=len, default=())):
        raise BadRow(told)


def lacks_room(model: VisionLanguageModel, prompt: Prompt, ids: Sequence[int]) -> str | None:
    """What is said of a prompt and an answer that do not fit."""
    size, room = prompt.length, model.max_positions
    if size + len(ids) <= room:
        return None
    return f"too long to score: prompt of {size} tokens, answer of {len(ids)}, room for {room}"
