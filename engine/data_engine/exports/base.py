"""What exports are made from: the kept pairs or all answers of a run, with their questions and pictures."""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from data_engine import stages
from data_engine.errors import UserError
from data_engine.questions import images
from data_engine.questions.dataset import Question, Questions, require_same
from data_engine.questions.images import Exif
from data_engine.store.units import read_unit, read_unit_facts

NOT_FITTING = "the format has no place for the question's images, system text or earlier turns"
NO_SOURCE = "the question or its picture can no longer be read"


class Rows(Protocol):
    """Rows that can be read one after the other, and whose number is known."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Mapping]: ...


@dataclass(frozen=True)
class QuestionRows:
    """A question with its pictures, and what an export writes about it: its kept pairs, or its answers."""

    question: Question
    rows: list[Mapping]
    """pairs as in schemas.pairs, or answers as ExportSource.answers has them"""
    read_stage: Callable[[str], Mapping[tuple, Mapping]]
    """name of a stage -> (idx, sample_index) -> its row, of all answers of the question's unit"""
    sampled: Mapping[int, str]
    """sample_index -> text, of the answers that the rows name, as it was when they were made"""

    @property
    def has_source(self) -> bool:
        """Whether the question and its pictures can still be read."""
        return self.question.problem is None

    def of_stage(self, stage: str, sample_index: int) -> Mapping | None:
        """The row of one answer to this question in a stage's file; None where the stage left it out.

        Raises UserError where the unit was computed again since the pairs were made, with other answers.
        """
        key = (self.question.idx, sample_index)
        now = self.read_stage(stages.SAMPLING.name).get(key, {})
        if now.get("answer") != self.sampled[sample_index]:
            raise UserError(
                f"idx {key[0]!r}: its answers are not those that its pairs were made of; pair again, by the command of "
                "the run with --continue_from_stage 2"
            )
        return self.read_stage(stage).get(key)

    def token_ids(self, sample_index: int) -> list[int] | None:
        """The token ids of one answer to this question, as sampled; None of an answer that was given as text."""
        return self.of_stage(stages.SAMPLING.name, sample_index)["token_ids"]


@dataclass
class Reached:
    """How far an export is."""

    share: float = 1.0
    """of the questions, those that were read; 1 before and after"""
    peak: float = 1.0
    """how much room it takes at most, in times of its rows: some lie there twice while they are brought in order"""
    needed_bytes: int = 0
    """all that room, once all rows are read; 0 before"""


@dataclass(frozen=True)
class ExportSource:
    """What every export of a run is made from."""

    pairs: Rows
    """kept pairs, rows of schemas.pairs, in the order of the questions"""
    questions: Questions
    unit_ranges: list[range]
    """the rows of `questions` that make up each unit"""
    work_dir: Path
    seed: int
    exif: Exif = "apply"
    """how the models saw the pictures"""
    control_tokens: tuple[str, ...] = ()
    """texts that a trainer of the instruct model would not read as text"""
    model_type: str | None = None
    """of the instruct model, as its config.json has it"""
    answers: Iterable[Mapping] = ()
    """rows of schemas.scored: every answer with its rewards, in the order of the questions"""
    read_table: Callable[[str, int], pa.Table] | None = None
    """name of a stage, number of a unit -> its table; None: as it is published"""
    instruct: Mapping = field(default_factory=dict)
    """the instruct model as run.json has it: job.checkpoints.Checkpoint, and the hash of its content"""
    rewards: tuple[str, ...] = ("sum", "avg")
    """schemas.reward_name of each reward of an answer"""
    rank_by: tuple[str, ...] = ("sum", "avg")
    """those by which answers rank"""
    min_reward: float | None = None
    """what an export of best answers leaves out: those with less of the first reward that ranks"""
    reached: Reached = field(default_factory=Reached)
    """how far the reader of with_questions is"""

    def with_questions(self, rows: Iterable[Mapping]) -> Iterator[QuestionRows]:
        """Each question that has a row, in the order of the questions; a unit without one is not read.

        Its pictures are in bytes that show any reader what the models saw.
        """
        groups = ((idx, list(group)) for idx, group in itertools.groupby(rows, key=itemgetter("idx")))
        group = next(groups, None)
        for unit, span in enumerate(self.unit_ranges):
            if group is None or group[0] not in set(self.questions.idx[span.start : span.stop]):
                continue
            # Read on the first use, since most exports need texts alone.
            read_stage = functools.cache(functools.partial(self._stage_rows, unit))
            facts, _ = read_unit_facts(self.work_dir, stages.SAMPLING.name, unit)
            # By a larger --limit the last unit has got more of them since.
            digests = facts["rows"][: len(span)]
            for row, question in enumerate(require_same(self.questions.rows(span), digests), span.start):
                self.reached.share = (row + 1) / len(self.questions)
                if group is not None and question.idx == group[0]:
                    yield QuestionRows(self._as_seen(question), group[1], read_stage, _sampled(group[1]))
                    group = next(groups, None)
        self.reached.share = 1.0
        if group is not None:
            raise RuntimeError(f"idx {group[0]!r} has pairs, but its place among the questions is not theirs")

    def _as_seen(self, question: Question) -> Question:
        seen = tuple(images.as_seen(image, self.exif) for image in question.images)
        return dataclasses.replace(question, image=None if question.image is None else seen[0], images=seen)

    def _stage_rows(self, unit: int, stage: str) -> dict[tuple, Mapping]:
        table = read_unit(self.work_dir, stage, unit).table if self.read_table is None else self.read_table(stage, unit)
        return {(row["idx"], row["sample_index"]): row for row in table.to_pylist()}


def _sampled(rows: Iterable[Mapping]) -> dict[int, str]:
    """sample_index -> text of the answers in pairs, or in rows of answers."""
    found = {}
    for row in rows:
        for index, text in (("chosen_index", "chosen"), ("rejected_index", "rejected"), ("sample_index", "answer")):
            if index in row:
                found[row[index]] = row[text]
    return found


@dataclass(frozen=True)
class Written:
    """What came of an export."""

    rows: int
    left_out: Counter = field(default_factory=Counter)
    """reason -> rows that are not in it"""
    rewritten: int = 0
    """rows of which a text was rewritten, so that a trainer reads it as text"""
    without_source: frozenset = frozenset()
    """idx of the questions that were left out for NO_SOURCE"""
    first_gone: str = ""
    """the first of them, and why it cannot be read"""

    @property
    def not_fitting(self) -> int:
        """Rows that were left out because the format has no place for them."""
        return self.left_out[NOT_FITTING]
