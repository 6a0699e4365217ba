"""From the counts of all pictures to rates, falls and their intervals: a paired bootstrap over seeds and pictures.

Each arm was judged on the same pictures with the same random numbers, so that a resample takes the same seeds and
pictures of every arm. S seeds, N pictures, B resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Columns of judge.COUNTS.
CLAIMS, WRONG, FOUND, OBJECTS, WORDS = range(5)
RESAMPLES = 4000
BASELINE = "baseline"


@dataclass(frozen=True)
class Interval:
    """A figure, and the 2.5 and 97.5 percentiles of its resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Totals:
    """Sums over seeds and pictures: the first entry [0] as they are, those behind it of each resample; [1 + B] each."""

    claims: np.ndarray
    wrong: np.ndarray
    found: np.ndarray
    objects: np.ndarray
    words: np.ndarray
    with_wrong: np.ndarray
    answers: np.ndarray

    @property
    def chair_i(self) -> np.ndarray:
        """Share of the objects that answers mention which are not in the picture (arXiv:1809.02156)."""
        return self.wrong / self.claims

    @property
    def chair_s(self) -> np.ndarray:
        """Share of the answers with any such object."""
        return self.with_wrong / self.answers

    @property
    def coverage(self) -> np.ndarray:
        """Share of the pictures' objects that answers mention."""
        return self.found / self.objects

    @property
    def length(self) -> np.ndarray:
        """Words an answer."""
        return self.words / self.answers


RATES = ("chair_i", "chair_s", "coverage", "length")


def resampled(num_seeds: int, num_pictures: int, seed: int = 0, resamples: int = RESAMPLES) -> tuple:
    """How often each seed [1 + B, S] and each picture [1 + B, N] is taken; the first row takes each once."""
    rng = np.random.default_rng(seed)
    return tuple(
        np.concatenate([np.ones((1, size)), rng.multinomial(size, np.full(size, 1 / size), size=resamples)])
        for size in (num_seeds, num_pictures)
    )


def totals(counts_SNC: np.ndarray, weights: tuple[np.ndarray, np.ndarray]) -> Totals:
    """Weighted sums of one arm's counts."""
    with_wrong = (counts_SNC[..., WRONG] > 0).astype(float)[..., None]
    columns = np.concatenate([counts_SNC, with_wrong, np.ones_like(with_wrong)], axis=-1)
    num_seeds, num_pictures, num_columns = columns.shape
    # One product of matrices: einsum takes minutes for it.
    by_picture = columns.transpose(1, 0, 2).reshape(num_pictures, num_seeds * num_columns)
    by_seed = (weights[1] @ by_picture).reshape(-1, num_seeds, num_columns)
    return Totals(*(by_seed * weights[0][..., None]).sum(1).T)


def interval(values: np.ndarray) -> Interval:
    """The figure itself first, its resamples behind it."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Interval(float(values[0]), float(low), float(high))


def fall(arm: Totals, baseline: Totals) -> np.ndarray:
    """By which share of the baseline's the arm hallucinates fewer objects; negative where it does more."""
    return 1 - arm.chair_i / baseline.chair_i


def table(counts: Mapping[str, np.ndarray], resamples: int = RESAMPLES) -> dict[str, dict[str, Interval]]:
    """By arm, all figures. `counts` has [S, N, C] of each arm and of the baseline."""
    num_seeds, num_pictures, _ = counts[BASELINE].shape
    weights = resampled(num_seeds, num_pictures, resamples=resamples)
    by_arm = {name: totals(values, weights) for name, values in counts.items()}
    found = {}
    for name, arm in by_arm.items():
        figures = {rate: getattr(arm, rate) for rate in RATES}
        if name != BASELINE:
            figures["fall"] = fall(arm, by_arm[BASELINE])
            figures["coverage_change"] = arm.coverage - by_arm[BASELINE].coverage
            if "oracle" in by_arm:
                figures["of_oracle"] = fall(arm, by_arm[BASELINE]) / fall(by_arm["oracle"], by_arm[BASELINE])
        found[name] = {key: interval(values) for key, values in figures.items()}
    return found
