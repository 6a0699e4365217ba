"""What the loop asks of a stage: units in, results out. One file of a stage has a function that makes its runner.

The loop claims a unit, submits it, and polls until its result is there. Only the loop claims, so a runner that looks
for more work never takes any.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from data_engine.config import RunConfig
from data_engine.models.base import VisionLanguageModel
from data_engine.models.device import Target
from data_engine.models.prompt_maker import PromptMaker
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Question
from data_engine.questions.given_rows import GivenAnswer
from data_engine.questions.images import Decode
from data_engine.questions.thoughts import ReadAnswer
from data_engine.store.sealed import Sealed
from data_engine.store.units import UnitResult


class AnswersByUnit(Protocol):
    """The answers of --answers."""

    def of_unit(self, unit: int) -> list[list[GivenAnswer]]:
        """The answers to each question of a unit."""

    def read(self, conversation: Conversation, answer: GivenAnswer) -> ReadAnswer:
        """The final answer of one of them, behind that conversation, and the thought before it."""


@dataclass(frozen=True)
class StageContext:
    """What a runner is made of."""

    model: VisionLanguageModel | PromptMaker | None
    """that of the stage's role: loaded, or what makes its prompts where another engine runs it"""
    config: RunConfig
    budgets: Mapping[str, int]
    """decode_rows, decode_slots and score_tokens of run.json"""
    idx_type: pa.DataType
    answers_as_text: bool
    """the stage's model has another tokenizer than the one that sampled: token ids do not carry over"""
    split: bool
    """the model is split over ranks, which make each call of it together"""
    decode: Decode
    """of images, in another process"""
    scores_own: bool = False
    """the stage's model is the one that drew the answers, in a run that samples"""
    target: Target | None = None
    """device and dtype of the run"""
    given: AnswersByUnit | None = None
    """those of --answers"""
    records: Callable[[int], Iterable[dict]] | None = None
    """the questions of a unit, by its number, without their pictures and with further columns: Questions.records"""
    column: Callable[[str], Iterable[object]] | None = None
    """a further column of the whole dataset: Questions.column"""


@dataclass(frozen=True)
class UnitWork:
    """A unit to compute."""

    number: int
    questions: Iterable[Question]
    """read as they are asked for"""
    inputs: Mapping[str, Sealed]
    """by name, the units of the same number of the stages that this one needs"""


class StageRunner(Protocol):
    """Computes units of one stage, one or several at a time."""

    @property
    def wants_more(self) -> bool:
        """Whether another unit could be started now, beside those that were submitted."""

    def submit(self, work: UnitWork) -> None:
        """Take a unit."""

    def poll(self) -> list[tuple[int, UnitResult]]:
        """Work for a while; the units that were finished meanwhile, by number."""

    def close(self) -> None:
        """Drop what is not finished, and free what the runner holds besides the model."""


class UnitByUnit:
    """The runner of a stage that computes one unit at a time, by a function; `free` lets go of what it holds."""

    def __init__(self, compute: Callable[[UnitWork], UnitResult], free: Callable[[], None] = lambda: None) -> None:
        self._compute, self._free = compute, free
        self._waiting: deque[UnitWork] = deque()

    @property
    def wants_more(self) -> bool:
        return not self._waiting

    def submit(self, work: UnitWork) -> None:
        self._waiting.append(work)

    def poll(self) -> list[tuple[int, UnitResult]]:
        work = self._waiting.popleft()
        return [(work.number, self._compute(work))]

    def close(self) -> None:
        self._waiting.clear()
        self._free()
