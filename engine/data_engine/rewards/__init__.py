"""Sources of reward: from what the stages of a source computed about answers to the numbers that rank them.

The table is stages.SOURCES. A source's file has the function that its line names,

    rewards(computed: Mapping[str, StageColumns], settings: RewardSettings) -> Mapping[str, np.ndarray]

which is called once a unit. `computed` has what each of the source's stages wrote, by the stage's name, and only the
answers of the unit that all of them have a number of, in one order. The result has the source's `columns` by their full
names, each float64 [answers]: NaN where there is no finite number, masked where an answer has none of that column
alone; a column that is left out has none in this run. The file may also hold the runner of its stages, see
pipeline/runner.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

# Columns of a stage's table that hold what it computed of an answer; a null is an answer that it has nothing of.
VALUES = ("score", "token_logps")


@dataclass(frozen=True)
class RewardSettings:
    """What rewards depend on besides what the stages computed."""

    beta: float
    """DPO's scale of the reward"""
    same_tokenizer: bool
    """all models read the same token ids, so that their log-probs match token by token"""


@dataclass(frozen=True)
class Tokens:
    """A number a token of each answer: those of answer n are values[offsets[n] : offsets[n + 1]]."""

    values: np.ndarray
    """[tokens]"""
    offsets: np.ndarray
    """int64 [answers + 1], from 0 on"""

    @classmethod
    def of(cls, answers: Sequence[Sequence[float]], dtype: type = np.float32) -> "Tokens":
        """The numbers of some answers, written out."""
        return cls(
            np.array([value for answer in answers for value in answer], dtype),
            np.cumsum([0, *map(len, answers)], dtype=np.int64),
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each answer, int64 [answers]."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class StageColumns:
    """What a stage wrote about some answers."""

    table: pa.Table
    """a row an answer, with the columns of the stage's schema"""

    @property
    def scores(self) -> np.ndarray:
        """The column score, float64 [answers]."""
        return self.table["score"].to_numpy()

    @property
    def tokens(self) -> Tokens:
        """The column token_logps, float32."""
        column = self.table["token_logps"].combine_chunks()
        offsets = column.offsets.to_numpy().astype(np.int64)
        return Tokens(column.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])


def differences(of: Tokens, less: Tokens, told: str) -> Tokens:
    """The numbers of one model or prompt less those of another, token by token, in float64.

    Raises AnswerError for the first answer of which they are different numbers of tokens; `told` says what must hold,
    with {of} and {less} in the places of the two numbers.
    """
    lengths = of.lengths
    for place in np.flatnonzero(lengths != less.lengths)[:1]:
        raise AnswerError(int(place), told.format(of=lengths[place], less=less.lengths[place]))
    # The difference of two infinities is no number either.
    with np.errstate(invalid="ignore"):
        return Tokens(of.values.astype(np.float64) - less.values, of.offsets)


class AnswerError(ValueError):
    """What is wrong with one answer: its place among those that the function was given, and the reason."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place
