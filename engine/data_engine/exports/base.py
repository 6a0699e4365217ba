"""What an export is given, and what it gives back."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Protocol

from data_engine import stages
from data_engine.questions import images
from data_engine.questions.dataset import Question, Questions, require_same
from data_engine.questions.images import Exif
from data_engine.store.units import read_unit, read_unit_facts


class Rows(Protocol):
    """Rows that can be read one after the other, and whose number is known."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Mapping]: ...


@dataclass(frozen=True)
class QuestionPairs:
    """A question with its pictures, and its kept pairs (rows of schemas.pairs: texts, rewards, lengths)."""

    question: Question
    pairs: list[Mapping]
    read_unit_ids: Callable[[], dict]
    """(idx, sample_index) -> token ids, of all answers of the question's unit"""

    @property
    def has_source(self) -> bool:
        """Whether the question and its pictures can still be read."""
        return self.question.problem is None

    def token_ids(self, sample_index: int) -> list[int]:
        """The token ids of one answer to this question, as sampled."""
        return self.read_unit_ids()[self.question.idx, sample_index]


@dataclass(frozen=True)
class KeptPairs:
    """What an export is given: the kept pairs, and where their questions, pictures and token ids are read from."""

    pairs: Rows
    """rows of schemas.pairs, in the order of the questions"""
    questions: Questions
    unit_ranges: list[range]
    """the rows of `questions` that make up each unit"""
    work_dir: Path
    seed: int
    exif: Exif = "apply"
    """how the models saw the pictures"""

    def by_question(self) -> Iterator[QuestionPairs]:
        """Each question that has a kept pair, in the order of the questions; a unit without one is not read.

        Its pictures are in bytes that show any reader what the models saw.
        """
        groups = ((idx, list(pairs)) for idx, pairs in itertools.groupby(self.pairs, key=itemgetter("idx")))
        group = next(groups, None)
        for unit, rows in enumerate(self.unit_ranges):
            if group is None or group[0] not in set(self.questions.idx[rows.start : rows.stop]):
                continue
            # Read on the first use, since most exports need texts alone.
            unit_ids = functools.cache(functools.partial(self._token_ids, unit))
            facts, _ = read_unit_facts(self.work_dir, stages.SAMPLING.name, unit)
            for question in require_same(self.questions.rows(rows), facts["rows"]):
                if group is not None and question.idx == group[0]:
                    yield QuestionPairs(self._as_seen(question), group[1], unit_ids)
                    group = next(groups, None)
        if group is not None:
            raise RuntimeError(f"idx {group[0]!r} has pairs, but its place among the questions is not theirs")

    def _as_seen(self, question: Question) -> Question:
        seen = tuple(images.as_seen(image, self.exif) for image in question.images)
        return dataclasses.replace(question, image=None if question.image is None else seen[0], images=seen)

    def _token_ids(self, unit: int) -> dict[tuple[int | str, int], list[int]]:
        table = read_unit(self.work_dir, stages.SAMPLING.name, unit).table.select(["idx", "sample_index", "token_ids"])
        return {(row["idx"], row["sample_index"]): row["token_ids"] for row in table.to_pylist()}


@dataclass(frozen=True)
class Written:
    """What came of an export."""

    rows: int
    without_source: frozenset = frozenset()
    """idx of kept pairs that were left out because their picture or question can no longer be read"""
    not_fitting: int = 0
    """kept pairs that were left out because the format has no place for their images, system text or earlier turns"""
