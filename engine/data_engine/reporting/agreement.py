"""How far the rewards that rank agree about candidate pairs: arrays in, a rank correlation and a share out."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """How far two rewards agree, over the pairs that have both."""

    first: str
    second: str
    num_pairs: int
    correlation: float | None
    """Spearman's, of the two differences chosen - rejected; None where one of them never varies"""
    same_order: float | None
    """share of the pairs in which both rewards put the same answer first, or both put none first"""


def agreements(differences: Mapping[str, np.ndarray]) -> list[Agreement]:
    """Each two rewards; `differences` are those of each reward, chosen - rejected, float64 [pairs]."""
    return [
        agreement((first, differences[first]), (second, differences[second]))
        for first, second in itertools.combinations(differences, 2)
    ]


def agreement(first: tuple[str, np.ndarray], second: tuple[str, np.ndarray]) -> Agreement:
    """How far two rewards, each with its name, agree; pairs in which one has no finite number do not count."""
    both = np.isfinite(first[1]) & np.isfinite(second[1])
    one, other = first[1][both], second[1][both]
    if not len(one):
        return Agreement(first[0], second[0], 0, None, None)
    same = float(np.mean(np.sign(one) == np.sign(other)))
    return Agreement(first[0], second[0], len(one), rank_correlation(one, other), same)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, equal numbers sharing the mean of theirs."""
    ranks = [mean_ranks(values) for values in (one, other)]
    ranks = [values - values.mean() for values in ranks]
    scale = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / scale if scale else None


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64 [values]; equal ones share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


def disagreement(differences: Sequence[np.ndarray]) -> np.ndarray:
    """How far rewards disagree about each pair, float64 [pairs] in 0 to 1; NaN where one has no finite number.

    Each reward puts the pairs in an order by chosen - rejected; a pair's place in it is the share of the pairs behind
    it. The disagreement is the largest place less the smallest.
    """
    if not differences:
        return np.zeros(0)
    size = len(differences[0])
    usable = np.all([np.isfinite(values) for values in differences], axis=0)
    found = np.full(size, np.nan)
    count = int(usable.sum())
    if count:
        places = [(mean_ranks(values[usable]) - 1) / max(1, count - 1) for values in differences]
        found[usable] = np.max(places, axis=0) - np.min(places, axis=0)
    return found
