"""Pairs of a good and a bad answer: rewarded answers in, candidate pairs out, before any filter.

A good answer is among the best by total reward and by reward a token, a bad one among the worst by both.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from data_engine.errors import UserError
from data_engine.preferences.word_count import count_words
from data_engine.rewards.implicit import unusable_reward, unusable_text

Row = Mapping[str, object]
"""One answer: idx, sample_index, answer, sum, avg."""

ROW_FIELDS = ("idx", "sample_index", "answer", "sum", "avg")


@dataclass(frozen=True, slots=True)
class Pair:
    """One candidate pair; the columns of records.pairs without `status`."""

    idx: int | str
    chosen_index: int
    rejected_index: int
    chosen: str
    rejected: str
    chosen_sum: float
    rejected_sum: float
    chosen_avg: float
    rejected_avg: float
    chosen_words: int
    rejected_words: int


def build_pairs(
    rows: Iterable[Row],
    rank: int = 3,
    distance: int = 25,
    count_words: Callable[[str], int] = count_words,
    *,
    markers: Sequence[str] = (),
) -> list[Pair]:
    """Candidate pairs of any number of questions, unfiltered; grouped by idx, wherever its rows stand.

    A row is a mapping with idx, sample_index, answer, sum, avg. An answer that contains one of `markers` never ranks.
    """
    for name, value in (("rank", rank), ("distance", distance)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    pairs = []
    for answers in by_idx(rows).values():
        ranked, _ = split_ranked(answers, markers)
        pairs += pair_up(ranked, rank, distance, count_words)
    return pairs


def by_idx(rows: Iterable[Row]) -> dict[Hashable, list[Row]]:
    """The rows of each question, questions in the order in which they first appear."""
    groups: dict[Hashable, dict[int, Row]] = {}
    for number, row in enumerate(rows):
        missing = [name for name in ROW_FIELDS if name not in row]
        if missing:
            raise UserError(f"row {number} has no {missing}; a row needs {', '.join(ROW_FIELDS)}")
        answers = groups.setdefault(row["idx"], {})
        if row["sample_index"] in answers:
            raise UserError(
                f"row {number}: idx {row['idx']!r} has two answers with sample_index {row['sample_index']}; "
                "number the answers of a question 0, 1, 2, ..."
            )
        answers[row["sample_index"]] = row
    return {idx: list(answers.values()) for idx, answers in groups.items()}


def split_ranked(answers: Sequence[Row], markers: Sequence[str] = ()) -> tuple[list[Row], dict[int, str]]:
    """The answers of one question that rank, by sample_index, and sample_index -> reason for those that do not."""
    ranked, reasons, texts = [], {}, set()
    for row in sorted(answers, key=lambda row: row["sample_index"]):
        text = row["answer"]
        reason = unusable_text(text, markers) or ("duplicate" if text in texts else None)
        texts.add(text)
        reason = reason or unusable_reward(row["sum"], row["avg"])
        if reason is None:
            ranked.append(row)
        else:
            reasons[row["sample_index"]] = reason
    if len(ranked) == 1:
        reasons[ranked.pop()["sample_index"]] = "alone"
    return ranked, reasons


def ranking(answers: Iterable[Row], reward: str) -> list[Row]:
    """The answers of one question by "sum" or "avg", the highest first, ties by sample_index."""
    return sorted(answers, key=lambda row: (-row[reward], row["sample_index"]))


def pair_up(ranked: Sequence[Row], rank: int, distance: int, count_words: Callable[[str], int]) -> list[Pair]:
    """Every good answer of one question with every bad one whose number of words differs by less than `distance`."""
    by_sum, by_avg = ranking(ranked, "sum"), ranking(ranked, "avg")
    top = _indexes(by_sum[:rank]) & _indexes(by_avg[:rank])
    bottom = _indexes(by_sum[-rank:]) & _indexes(by_avg[-rank:])
    # With fewer than 2 * rank answers the two can overlap, and an answer is not both good and bad.
    chosen = [row for row in by_sum if row["sample_index"] in top - bottom]
    rejected = [row for row in by_sum if row["sample_index"] in bottom - top]
    if not chosen or not rejected:
        return []
    words = {row["sample_index"]: count_words(row["answer"]) for row in (*chosen, *rejected)}
    return [
        Pair(
            idx=good["idx"],
            chosen_index=good["sample_index"],
            rejected_index=bad["sample_index"],
            chosen=good["answer"],
            rejected=bad["answer"],
            chosen_sum=good["sum"],
            rejected_sum=bad["sum"],
            chosen_avg=good["avg"],
            rejected_avg=bad["avg"],
            chosen_words=words[good["sample_index"]],
            rejected_words=words[bad["sample_index"]],
        )
        for good in chosen
        for bad in rejected
        if abs(words[good["sample_index"]] - words[bad["sample_index"]]) < distance
    ]


def _indexes(answers: Sequence[Row]) -> set[int]:
    return {row["sample_index"] for row in answers}
