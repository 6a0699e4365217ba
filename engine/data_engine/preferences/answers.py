"""The answers of one question with their rewards, column by column; and which of them rank."""

import math
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from data_engine.errors import UserError
from data_engine.preferences.near_duplicates import near_duplicates

RewardedAnswer = Mapping[str, object]
"""One answer as a row: idx, sample_index, answer, and rewards by name."""

SUM_AND_AVG = ("sum", "avg")
ALONE = "alone"
REASONS = {
    "not_scored": "a model gave it no log-probs, or a source of its reward no number",
    "unfinished_thought": "its thought does not end, so that no answer follows",
    "empty": "it has no text",
    "marker": "its text contains a marker of the prompt format",
    "duplicate": "an answer with a lower sample_index has the same text",
    "near_duplicate": "an answer with a lower sample_index says nearly the same",
    "non_finite": "its reward is not a finite number",
    ALONE: "no other answer to the question is left to compare it with",
}
"""Why an answer is not ranked: name, as counted in the funnel, and meaning."""
KEY_FIELDS = ("idx", "sample_index", "answer")


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one question, in the order of sample_index; a place is a position in these lists."""

    idx: int | str
    indexes: Sequence[int]
    """sample_index"""
    texts: Sequence[str | None]
    rewards: Mapping[str, Sequence[float | None]]
    """name -> reward of each answer; None where it is not scored"""

    @classmethod
    def of_rows(cls, rows: Iterable[RewardedAnswer], names: Iterable[str]) -> "Answers":
        """From the rows of one question, in any order; `names` are those of their rewards."""
        rows = sorted(rows, key=lambda row: row["sample_index"])
        rewards = {name: [row[name] for row in rows] for name in names}
        return cls(rows[0]["idx"], [row["sample_index"] for row in rows], [row["answer"] for row in rows], rewards)


@dataclass(frozen=True)
class AnswerRule:
    """Which answers rank."""

    rank_by: tuple[str, ...] = SUM_AND_AVG
    """names of the rewards that rank; an answer without a finite number in one of them never does"""
    markers: tuple[str, ...] = ()
    """texts of the prompt format, which no answer that ranks contains"""
    near_duplicates: float | None = None
    """of answers that are at least so similar the first one ranks; see near_duplicates.py"""


@dataclass(frozen=True, slots=True)
class Ranked:
    """What a strategy sees of the answers that rank, in the order of sample_index."""

    rewards: Sequence[Sequence[float]]
    """for each column of --rank_by the reward of each answer, its length taken off where --length_alpha asks for it"""

    def __len__(self) -> int:
        return len(self.rewards[0])

    def best_first(self, by: int = 0) -> list[int]:
        """Places of the answers by one of the rewards, the highest first, ties by sample_index."""
        return best_first(self.rewards[by])


def best_first(rewards: Sequence[float]) -> list[int]:
    """Places of the highest rewards first; equal ones stay in their order."""
    return sorted(range(len(rewards)), key=[-reward for reward in rewards].__getitem__)


def unusable_text(answer: str | None, markers: Sequence[str] = ()) -> str | None:
    """The reason why an answer with this text never ranks, or None; `markers` are those of the prompt format.

    Text is None where a thought before it is not finished.
    """
    if answer is None:
        return "unfinished_thought"
    if not answer.strip():
        return "empty"
    return "marker" if any(marker in answer for marker in markers) else None


def unusable_reward(*rewards: float | None) -> str | None:
    """The reason why an answer with these rewards never ranks, or None."""
    if None in rewards:
        return "not_scored"
    return None if all(map(math.isfinite, rewards)) else "non_finite"


def why_not_ranked(answers: Answers, rule: AnswerRule) -> list[str | None]:
    """For each answer the name of the reason why it does not rank, see REASONS, or None."""
    reasons, seen = [], set()
    for text, *rewards in zip(answers.texts, *(answers.rewards[name] for name in rule.rank_by), strict=True):
        reason = unusable_text(text, rule.markers) or ("duplicate" if text.strip() in seen else None)
        # Sampled answers are stripped, given ones need not be; trainers see no difference.
        seen.add(text and text.strip())
        reasons.append(reason or unusable_reward(*rewards))
    left = places_of(reasons)
    if rule.near_duplicates is not None:
        for place in near_duplicates([answers.texts[place] for place in left], rule.near_duplicates):
            reasons[left[place]] = "near_duplicate"
        left = places_of(reasons)
    if len(left) == 1:
        reasons[left[0]] = ALONE
    return reasons


def places_of(reasons: Sequence[str | None]) -> list[int]:
    """The places of the answers that rank."""
    return [place for place, reason in enumerate(reasons) if reason is None]


def by_idx(rows: Iterable[RewardedAnswer]) -> dict[Hashable, list[RewardedAnswer]]:
    """The rows of each question, in the order in which the questions first appear."""
    fields = (*KEY_FIELDS, *SUM_AND_AVG)
    groups: dict[Hashable, dict[int, RewardedAnswer]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(
                f"row {number} is of type {type(row).__name__}; expected a dict for each answer, as a DataFrame has by "
                'df.to_dict("records")'
            )
        missing = [name for name in fields if name not in row]
        if missing:
            raise UserError(f"row {number} has no {missing}; a row needs {', '.join(fields)}")
        _check_values(number, row)
        answers = groups.setdefault(row["idx"], {})
        if row["sample_index"] in answers:
            raise UserError(
                f"row {number}: idx {row['idx']!r} has two answers with sample_index {row['sample_index']}; "
                "number the answers of a question 0, 1, 2, ..."
            )
        answers[row["sample_index"]] = row
    return {idx: list(answers.values()) for idx, answers in groups.items()}


def _check_values(number: int, row: RewardedAnswer) -> None:
    """Raise UserError for values of other types; a table of pandas has NaN where it has none."""
    idx, index, answer = row["idx"], row["sample_index"], row["answer"]
    if not isinstance(idx, str | numbers.Integral):
        raise UserError(f"row {number}: idx must be text or a whole number, got {idx!r}")
    if not isinstance(index, numbers.Integral):
        raise UserError(f"row {number}: sample_index must be a whole number, got {index!r}")
    if not isinstance(answer, str | None):
        raise UserError(f"row {number}: answer must be text, or None where there is none, got {answer!r}")
    for name in SUM_AND_AVG:
        reward = row[name]
        # Decimals and tensors of one number are numbers, too; the NA of pandas has no value as one.
        is_number = hasattr(type(reward), "__float__") and not isinstance(reward, bool)
        if reward is not None and not is_number:
            raise UserError(f"row {number}: {name} must be a number, or None where there is none, got {reward!r}")
