"""--length_alpha auto: by how much a word has to count against an answer, so that no side of the pairs is longer.

DICE, arXiv:2406.09760: answers rank by reward - alpha * words, with the alpha at which the mean difference in words of
all candidate pairs vanishes. Here it is found by bisection.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from data_engine.preferences.answers import Ranked
from data_engine.preferences.strategies import STRATEGIES, PairRule
from data_engine.tables import load

# The mean difference, in words, that counts as none, and how often an interval is halved at most.
NEAR_ENOUGH = 0.01
MAX_DOUBLINGS = MAX_HALVINGS = 40


class LengthBalance:
    """The answers that rank, of all questions: rewards and words, in a few bytes an answer."""

    def __init__(self, num_rewards: int) -> None:
        self._rewards = [array("d") for _ in range(num_rewards)]
        self._words = array("i")
        self._ends = array("q", [0])

    def add(self, rewards: Sequence[Sequence[float]], words: Sequence[int]) -> None:
        """Add a question: rewards by column, and the words of each answer."""
        for column, own in zip(self._rewards, rewards, strict=True):
            column.extend(own)
        self._words.extend(words)
        self._ends.append(len(self._words))

    def alpha(self, rule: PairRule) -> float:
        """The number; 0 where answers do not differ in words or rewards, or no alpha evens the pairs out."""
        step = self._scale()
        low, at_low = 0.0, self.mean_difference(0.0, rule)
        if not step or at_low is None or abs(at_low) <= NEAR_ENOUGH:
            return 0.0
        # A longer chosen side asks for an alpha above 0, a shorter one for one below.
        step, beyond = math.copysign(step, at_low), -math.copysign(math.inf, at_low)
        for _ in range(MAX_DOUBLINGS):
            high = low + step
            at_high = self._or_beyond(high, rule, beyond)
            if at_high * at_low <= 0:
                return self._bisected((low, at_low), (high, at_high), rule, beyond)
            low, at_low, step = high, at_high, 2 * step
        return 0.0

    def mean_difference(self, alpha: float, rule: PairRule) -> float | None:
        """The mean over all candidate pairs of words(chosen) - words(rejected); None without pairs."""
        total, num_pairs = 0, 0
        for words, pairs in self._picked(replace(rule, length_alpha=alpha)):
            for good, bad in pairs:
                difference = words[good] - words[bad]
                if abs(difference) < rule.max_word_gap:
                    total, num_pairs = total + difference, num_pairs + 1
        return total / num_pairs if num_pairs else None

    def _or_beyond(self, alpha: float, rule: PairRule, beyond: float) -> float:
        """The mean difference; `beyond` where length counts so much that no pair is left: of the other sign, and worse
        than any."""
        found = self.mean_difference(alpha, rule)
        return beyond if found is None else found

    def _picked(self, rule: PairRule) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        pick, all_words = load(STRATEGIES[rule.strategy]), self._words.tolist()
        taken_off = rule.length_alpha * np.frombuffer(self._words, np.intc)
        columns = [(np.frombuffer(column) - taken_off).tolist() for column in self._rewards] if all_words else []
        for start, end in zip(self._ends[:-1], self._ends[1:], strict=True):
            yield all_words[start:end], pick(Ranked([column[start:end] for column in columns]), rule)

    def _bisected(self, low: tuple[float, float], high: tuple[float, float], rule: PairRule, beyond: float) -> float:
        """The end with the smaller mean difference, once the interval is halved often enough; (alpha, difference)."""
        for _ in range(MAX_HALVINGS):
            best = min(low, high, key=lambda end: (abs(end[1]), end[0]))
            middle = (low[0] + high[0]) / 2
            if abs(best[1]) <= NEAR_ENOUGH or middle in (low[0], high[0]):
                return best[0]
            found = (middle, self._or_beyond(middle, rule, beyond))
            low, high = (found, high) if found[1] * high[1] <= 0 else (low, found)
        return min(low, high, key=lambda end: (abs(end[1]), end[0]))[0]

    def _scale(self) -> float:
        """A first guess: how far rewards are spread for each word by which lengths are."""
        if not self._words:
            return 0.0
        spreads = [max(column) - min(column) for column in self._rewards]
        words = max(self._words) - min(self._words)
        return min(spreads) / words / 64 if words and min(spreads) > 0 else 0.0
