"""Pairs of a good and a bad answer: rewarded answers in, candidate pairs out, before any filter.

A strategy is a function `pick(ranked, rule) -> [(chosen, rejected), ...]` over the answers of one question that rank.
What all strategies share is here: which answers rank at all, and by how much the word counts of a pair may differ.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data_engine.errors import UserError
from data_engine.preferences.word_count import count_words
from data_engine.rewards.implicit import unusable_reward, unusable_text
from data_engine.tables import load

# A strategy is one file and one line here.
STRATEGIES = {"cross": "data_engine.preferences.strategies.cross:pick"}
DEFAULT = "cross"

RewardedAnswer = Mapping[str, object]
"""One answer: idx, sample_index, answer, sum, avg."""

ROW_FIELDS = ("idx", "sample_index", "answer", "sum", "avg")


@dataclass(frozen=True)
class PairRule:
    """How the answers of a question are paired: everything that a strategy may depend on besides the answers."""

    pair_depth: int = 3
    """chosen and rejected answers are among so many at the top and at the bottom of a ranking; --rank"""
    max_word_gap: int = 25
    """the word counts of a pair differ by less than this; --distance"""
    strategy: str = field(default_factory=lambda: DEFAULT)
    """a name of STRATEGIES"""


@dataclass(frozen=True, slots=True)
class Pair:
    """One candidate pair; the columns of schemas.pairs without `status`."""

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
    rows: Iterable[RewardedAnswer],
    rank: int = 3,
    distance: int = 25,
    count_words: Callable[[str], int] = count_words,
    *,
    markers: Sequence[str] = (),
    strategy: str = DEFAULT,
) -> list[Pair]:
    """Candidate pairs of any number of questions, unfiltered. The rows of a question may come in any order.

    A row is a mapping with idx, sample_index, answer, sum, avg. An answer that contains one of `markers` never ranks.
    `rank` and `distance` are PairRule's pair_depth and max_word_gap, `strategy` is a name of STRATEGIES. Raises
    UserError for values that cannot be used.
    """
    if strategy not in STRATEGIES:
        raise UserError(f'unknown strategy "{strategy}"; known: {", ".join(STRATEGIES)}')
    for name, value in (("rank", rank), ("distance", distance)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    rule, pairs = PairRule(rank, distance, strategy), []
    for answers in by_idx(rows).values():
        ranked, _ = split_ranked(answers, markers)
        pairs += pair_up(ranked, rule, count_words)
    return pairs


def by_idx(rows: Iterable[RewardedAnswer]) -> dict[Hashable, list[RewardedAnswer]]:
    """The rows of each question, in the order in which the questions first appear."""
    groups: dict[Hashable, dict[int, RewardedAnswer]] = {}
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


def split_ranked(
    answers: Sequence[RewardedAnswer], markers: Sequence[str] = ()
) -> tuple[list[RewardedAnswer], dict[int, str]]:
    """The answers of one question that rank, ordered by sample_index; and sample_index -> reason for the others."""
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


def ranking(answers: Iterable[RewardedAnswer], reward: str) -> list[RewardedAnswer]:
    """The answers of one question by "sum" or "avg", the highest first, ties by sample_index."""
    return sorted(answers, key=lambda row: (-row[reward], row["sample_index"]))


def pair_up(ranked: Sequence[RewardedAnswer], rule: PairRule, count_words: Callable[[str], int]) -> list[Pair]:
    """The pairs of one question that the rule's strategy picks, without those whose word counts differ too much."""
    picked = load(STRATEGIES[rule.strategy])(ranked, rule)
    answers = {row["sample_index"]: row for both in picked for row in both}
    words = {index: count_words(row["answer"]) for index, row in answers.items()}
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
        for good, bad in picked
        if abs(words[good["sample_index"]] - words[bad["sample_index"]]) < rule.max_word_gap
    ]
