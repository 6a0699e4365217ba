"""Pairs of a good and a bad answer: rewarded answers in, candidate pairs out, before any filter.

A strategy is a function `pick(ranked, rule) -> [(chosen, rejected), ...]` over the answers of one question that rank:
places in, places out. What all strategies share is here and in preferences/answers.py: which answers rank at all, and
by how much the word counts of a pair may differ.
"""

import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from data_engine.config_checks import require_finite, require_whole
from data_engine.errors import UserError, nearest
from data_engine.preferences.answers import (
    SUM_AND_AVG,
    AnswerRule,
    Answers,
    Ranked,
    RewardedAnswer,
    by_idx,
    places_of,
    why_not_ranked,
)
from data_engine.preferences.word_count import count_words
from data_engine.tables import load

# A strategy is one file and one line here.
STRATEGIES = {
    "cross": "data_engine.preferences.strategies.cross:pick",
    "best_worst": "data_engine.preferences.strategies.best_worst:pick",
    "aligned": "data_engine.preferences.strategies.aligned:pick",
    "right_wrong": "data_engine.preferences.strategies.right_wrong:pick",
    "mu_2sigma": "data_engine.preferences.strategies.mu_2sigma:pick",
}
DEFAULT = "cross"


@dataclass(frozen=True)
class PairRule:
    """How the answers of a question that rank are paired: all that a strategy may depend on besides the answers."""

    pair_depth: int = 3
    """chosen and rejected answers are among so many at the top and at the bottom of a ranking; --rank"""
    max_word_gap: int = 25
    """the word counts of a pair differ by less than this; --distance"""
    strategy: str = DEFAULT
    """a name of STRATEGIES"""
    right: float | None = None
    """from this reward on an answer is right, for strategies that ask"""
    length_alpha: float = 0.0
    """answers rank by their rewards minus this times their words"""


@dataclass(frozen=True, slots=True)
class Pair:
    """One candidate pair: two answers of a question, by their places."""

    answers: Answers
    good: int
    bad: int
    chosen_words: int
    rejected_words: int
    margin: float
    """the chosen answer's reward minus the rejected one's, by the first reward that ranks"""

    @property
    def idx(self) -> int | str:
        return self.answers.idx

    @property
    def chosen_index(self) -> int:
        return self.answers.indexes[self.good]

    @property
    def rejected_index(self) -> int:
        return self.answers.indexes[self.bad]

    @property
    def chosen(self) -> str:
        return self.answers.texts[self.good]

    @property
    def rejected(self) -> str:
        return self.answers.texts[self.bad]

    @property
    def chosen_sum(self) -> float:
        return self.answers.rewards["sum"][self.good]

    @property
    def rejected_sum(self) -> float:
        return self.answers.rewards["sum"][self.bad]

    @property
    def chosen_avg(self) -> float:
        return self.answers.rewards["avg"][self.good]

    @property
    def rejected_avg(self) -> float:
        return self.answers.rewards["avg"][self.bad]


def build_pairs(
    rows: Iterable[RewardedAnswer],
    rank: int = 3,
    distance: int = 25,
    count_words: Callable[[str], int] = count_words,
    *,
    markers: Sequence[str] = (),
    strategy: str = DEFAULT,
    right: float | None = None,
) -> list[Pair]:
    """Candidate pairs of any number of questions, unfiltered. The rows of a question may come in any order.

    A row is a mapping with idx, sample_index, answer, sum, avg. An answer that contains one of `markers` never ranks.
    `rank` and `distance` are PairRule's pair_depth and max_word_gap, `strategy` is a name of STRATEGIES, and `right`
    the sum from which on an answer is right, which strategy right_wrong asks for. Raises UserError for values that
    cannot be used.
    """
    require_strategy(strategy)
    if (strategy == "right_wrong") != (right is not None):
        raise UserError(f"right goes with strategy right_wrong, and is needed there; got {right} and {strategy}")
    if right is not None:
        require_finite(right=right)
    require_whole(rank=rank)
    if not isinstance(distance, numbers.Real):
        raise UserError(f"distance must be a number, got {distance!r}")
    if isinstance(markers, str):
        raise UserError(f"markers must be a list of texts, got one text, {markers!r}")
    for name, value in (("rank", rank), ("distance", distance)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    which, rule, pairs = AnswerRule(markers=tuple(markers)), PairRule(rank, distance, strategy, right), []
    for group in by_idx(rows).values():
        answers = Answers.of_rows(group, SUM_AND_AVG)
        ranked = places_of(why_not_ranked(answers, which))
        pairs += pair_up(answers, ranked, SUM_AND_AVG, rule, count_words)
    return pairs


def require_strategy(name: str) -> None:
    """Raise UserError for the name of no strategy."""
    if name not in STRATEGIES:
        raise UserError(f'unknown strategy "{name}"; known: {", ".join(STRATEGIES)}{nearest(str(name), STRATEGIES)}')


def pair_up(
    answers: Answers,
    ranked: Sequence[int],
    rank_by: Sequence[str],
    rule: PairRule,
    count_words: Callable[[str], int],
) -> list[Pair]:
    """The pairs of one question that the rule's strategy picks, without those whose word counts differ too much.

    `ranked` are the places of the answers that rank, and `rank_by` the names of the rewards by which they do.
    """
    if len(ranked) < 2:
        return []
    columns = [[answers.rewards[name][place] for place in ranked] for name in rank_by]
    words: dict[int, int] = {}
    if rule.length_alpha:
        words = {place: count_words(answers.texts[ranked[place]]) for place in range(len(ranked))}
    found = []
    for good, bad in load(STRATEGIES[rule.strategy])(Ranked(shortened(columns, words, rule.length_alpha)), rule):
        for place in (good, bad):
            if place not in words:
                words[place] = count_words(answers.texts[ranked[place]])
        if abs(words[good] - words[bad]) < rule.max_word_gap:
            margin = columns[0][good] - columns[0][bad]
            found.append(Pair(answers, ranked[good], ranked[bad], words[good], words[bad], margin))
    return found


def shortened(columns: list[list[float]], words: Sequence[int] | dict[int, int], alpha: float) -> list[list[float]]:
    """Rewards minus alpha times the words of their answers."""
    if not alpha:
        return columns
    return [[reward - alpha * words[place] for place, reward in enumerate(column)] for column in columns]
