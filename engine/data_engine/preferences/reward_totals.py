"""How a reward lies over all answers, whether they rank or not; a unit's numbers in, one line of a summary out.

Of a reward that is 1 for right and 0 for wrong, the mean is the share of right answers, and the mean of the best the
share of questions that have one: pass@1 and pass@k.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_engine.plural import plural
from data_engine.stages import MEAN

# The last digits of sums go by the size of units.
_DIGITS = 9
# A column whose numbers lie so many times as far apart as those of another one decides a mean of both nearly alone.
UNEVEN = 4


@dataclass
class RewardTotals:
    """Sums over all answers that have a finite number of one reward, and over their questions."""

    answers: int = 0
    questions: int = 0
    """those with such an answer"""
    equal: int = 0
    """questions all of whose answers, two at least, have one number: no pair of them says which is better"""
    sum: float = 0.0
    sum_best: float = 0.0
    """over questions, of the highest number"""
    sum_worst: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, values: np.ndarray, starts: Sequence[int]) -> None:
        """The answers of some questions, NaN where one has no number; `starts`: the first answer of each question."""
        if not len(starts):
            return
        finite = np.where(np.isfinite(values), values, np.nan)
        numbers = np.add.reduceat(~np.isnan(finite), starts, dtype=int)
        best, worst = np.fmax.reduceat(finite, starts), np.fmin.reduceat(finite, starts)
        self.answers += int(numbers.sum())
        self.questions += int((numbers > 0).sum())
        self.equal += int(((numbers > 1) & (best == worst)).sum())
        self.sum += float(np.nansum(finite))
        self.sum_best += float(np.nansum(best))
        self.sum_worst += float(np.nansum(worst))
        # NaN, where no answer here has a number, is no smaller and no larger.
        self.least = min(self.least, float(np.fmin.reduce(worst)))
        self.most = max(self.most, float(np.fmax.reduce(best)))

    def means(self) -> dict[str, float]:
        """What is told and kept of it: counts, and means over answers and over questions."""
        over = {"mean": (self.sum, self.answers), "best": (self.sum_best, self.questions),
                "worst": (self.sum_worst, self.questions)}  # fmt: skip
        counts = {"answers": self.answers, "questions": self.questions, "equal": self.equal}
        return counts | {name: float(f"{total / max(1, count):.{_DIGITS}g}") for name, (total, count) in over.items()}


def label(name: str, means: Mapping) -> str:
    """A reward by its name, and whether it does not rank; pairs of earlier versions keep those that do alone."""
    return name if means.get("ranks", True) else f"{name} (does not rank)"


def signed(means: Mapping) -> dict[str, str]:
    """The means as text; empty where no answer has a number, of which there is no mean."""
    return {which: f"{means[which]:+.4g}" if means["answers"] else "" for which in ("mean", "best", "worst")}


def told(name: str, means: Mapping) -> str:
    """One reward in words."""
    if not means["answers"]:
        return f"{label(name, means)}: no answer has a number"
    mean, best, worst = (f"{means[which]:.4g}" for which in ("mean", "best", "worst"))
    counts = f"one number for all answers: {means['equal']:,} of {plural(means['questions'], 'question')}"
    return (
        f"{label(name, means)}: {mean} on average over {plural(means['answers'], 'answer')}, {best} for the best of a "
        f"question, {worst} for the worst; {counts}"
    )


def uneven(
    totals: Mapping[str, RewardTotals], aspects: Mapping[str, Sequence[str]], rank_by: Sequence[str]
) -> Iterator[str]:
    """What to say of each mean that ranks, of aspects whose numbers are of UNEVEN scales; `aspects` by their source."""
    for source, names in aspects.items():
        columns = [f"{source}.{name}" for name in names]
        if f"{source}.{MEAN}" not in rank_by or MEAN in names:
            continue
        ranges = {name: totals[name].most - totals[name].least for name in columns}
        # One that is the same for all answers, or has none, decides nothing.
        ranges = {name: size for name, size in ranges.items() if size > 0}
        widest, narrowest = (choose(ranges, key=ranges.get, default=None) for choose in (max, min))
        if ranges and ranges[widest] >= UNEVEN * ranges[narrowest]:
            yield (
                f"{source}.{MEAN} goes mostly by {widest}, whose numbers are from {totals[widest].least:.4g} to "
                f"{totals[widest].most:.4g}, where those of {narrowest} are from {totals[narrowest].least:.4g} to "
                f"{totals[narrowest].most:.4g}: give them one scale, or rank by the mean of ranks, with --strategy "
                f"best_worst --rank_by {','.join(columns)}"
            )
