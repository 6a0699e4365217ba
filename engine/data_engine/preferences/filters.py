"""Filters drop candidate pairs. Each is one function and one line in a table.

A filter takes (pairs, seed) and returns for each pair whether it is kept. The pairs may come in any order, and it may
take O(n log n).
"""

import functools
import random
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_engine.preferences.strategies import Pair
from data_engine.seeds import seed_for

KEPT = "kept"
MAX_PAIRS_PER_IDX = 3
MAX_MEAN_DIFFERENCE = 0.5


class PairLengths(NamedTuple):
    """What a filter over the whole dataset sees of a Pair: no texts, so that all pairs fit in memory."""

    idx: int | str
    chosen_index: int
    rejected_index: int
    chosen_words: int
    rejected_words: int


@dataclass(frozen=True)
class FilterRule:
    """What the user says of the filters."""

    equal: tuple[str, ...] | None = None
    """names of rewards: pairs whose answers are equal by each of them are dropped"""
    min_margin: float | None = None
    """pairs of a smaller margin are dropped"""
    max_margin: float | None = None
    """pairs of a larger margin are dropped"""
    max_pairs: int = MAX_PAIRS_PER_IDX
    """pairs that a question may keep"""
    length_balance: float = MAX_MEAN_DIFFERENCE
    """words by which chosen answers may be longer on average"""


def identical(pairs: Sequence[Pair], seed: int) -> list[bool]:
    """Drop a pair whose two sides are the same text, and every copy of a pair but the first."""
    seen, kept = set(), []
    for pair in pairs:
        key = (pair.idx, pair.chosen, pair.rejected)
        kept.append(pair.chosen != pair.rejected and key not in seen)
        seen.add(key)
    return kept


def per_idx(pairs: Sequence[Pair], seed: int, max_pairs: int = MAX_PAIRS_PER_IDX) -> list[bool]:
    """Keep at most so many pairs of each question, drawn by the seed and the idx."""
    positions = defaultdict(list)
    for position, pair in enumerate(pairs):
        positions[pair.idx].append(position)
    kept = [True] * len(pairs)
    for idx, own in positions.items():
        if len(own) <= max_pairs:
            continue
        own.sort(key=lambda position: (pairs[position].chosen_index, pairs[position].rejected_index))
        # random() is the only method whose numbers Python guarantees to be the same in every version.
        draw = random.Random(seed_for(seed, idx)).random
        drawn = sorted((draw(), position) for position in own)
        for _, position in drawn[max_pairs:]:
            kept[position] = False
    return kept


def equal(rank_by: Sequence[str], pairs: Sequence[Pair], seed: int) -> list[bool]:
    """Drop the pairs whose answers are equal by each of these rewards: sample_index alone told which one is chosen."""
    return [
        any(rewards[pair.good] != rewards[pair.bad] for rewards in map(pair.answers.rewards.__getitem__, rank_by))
        for pair in pairs
    ]


def min_margin(least: float, pairs: Sequence[Pair], seed: int) -> list[bool]:
    """Drop the pairs whose margin is less than --min_margin."""
    return [pair.margin >= least for pair in pairs]


def max_margin(most: float, pairs: Sequence[Pair], seed: int) -> list[bool]:
    """Drop the pairs whose margin is more than --max_margin."""
    return [pair.margin <= most for pair in pairs]


def length_balance(
    pairs: Sequence[PairLengths], seed: int, max_mean_difference: float = MAX_MEAN_DIFFERENCE
) -> list[bool]:
    """Drop the pairs with the largest difference in length, until the mean difference is at most so many words.

    The difference is words(chosen) - words(rejected); a negative mean drops nothing. Among equal differences the lowest
    idx is dropped first, then the lowest sample indexes.
    """
    total, left = 0, len(pairs)
    # Difference -> positions of its pairs; pairs whose chosen answer is not longer are never dropped.
    longer: dict[int, array] = defaultdict(functools.partial(array, "q"))
    for position, pair in enumerate(pairs):
        difference = pair.chosen_words - pair.rejected_words
        total += difference
        if difference > 0:
            longer[difference].append(position)

    def by_idx(position: int) -> tuple:
        pair = pairs[position]
        return pair.idx, pair.chosen_index, pair.rejected_index

    kept = [True] * len(pairs)
    for difference in sorted(longer, reverse=True):
        for position in sorted(longer[difference], key=by_idx):
            if total <= max_mean_difference * left:
                return kept
            kept[position] = False
            total, left = total - difference, left - 1
    return kept


Filter = Callable[[Sequence, int], list[bool]]

# In the order in which they run. A filter of the first table is called for each question and sees its pairs; one of the
# second is called once, for all pairs that are left, as PairLengths.
QUESTION_FILTERS: dict[str, Filter] = {"identical": identical, "per_idx": per_idx}
DATASET_FILTERS: dict[str, Filter] = {"length_balance": length_balance}
FILTERS: dict[str, Filter] = {**QUESTION_FILTERS, **DATASET_FILTERS}
# Filters of a question that run before the others where the field of FilterRule of the same name is set, which is their
# first argument.
ON_REQUEST: dict[str, Callable[[Any, Sequence, int], list[bool]]] = {
    "equal": equal, "min_margin": min_margin, "max_margin": max_margin,
}  # fmt: skip


def question_filters(rule: FilterRule) -> dict[str, Filter]:
    """The filters that a pairing runs for each question."""
    asked = {}
    for name, keeps in ON_REQUEST.items():
        limit = getattr(rule, name)
        if limit is not None:
            asked[name] = functools.partial(keeps, limit)
    return {**asked, **QUESTION_FILTERS, "per_idx": functools.partial(per_idx, max_pairs=rule.max_pairs)}


def dataset_filters(rule: FilterRule) -> dict[str, Filter]:
    """The filters that a pairing runs for all pairs."""
    balance = functools.partial(length_balance, max_mean_difference=rule.length_balance)
    return {**DATASET_FILTERS, "length_balance": balance}


class Selected(Sequence):
    """A view of some of the pairs, so that the pairs of a whole dataset are not copied."""

    def __init__(self, pairs: Sequence, positions: Sequence[int]) -> None:
        self._pairs, self._positions = pairs, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, at: int) -> object:
        return self._pairs[self._positions[at]]

    def __iter__(self) -> Iterator:
        return map(self._pairs.__getitem__, self._positions)


def statuses(pairs: Sequence, seed: int, filters: Mapping[str, Filter] = FILTERS) -> list[str]:
    """For each pair "kept", or the name of the first of `filters` that drops it; later filters do not see it."""
    status = [KEPT] * len(pairs)
    left: Sequence[int] = range(len(pairs))
    for name, keeps in filters.items():
        kept = keeps(Selected(pairs, left), seed)
        for position, stays in zip(left, kept, strict=True):
            if not stays:
                status[position] = name
        left = array("q", (position for position, stays in zip(left, kept, strict=True) if stays))
    return status
