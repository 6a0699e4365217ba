"""The best good answer with the worst bad one, the second best with the second worst, and so on.

Good and bad are those of `cross`: in the top, or in the bottom, of each ranking.
"""

from data_engine.preferences.answers import Ranked
from data_engine.preferences.strategies import PairRule
from data_engine.preferences.strategies.cross import good_and_bad


def pick(ranked: Ranked, rule: PairRule) -> list[tuple[int, int]]:
    """(chosen, rejected): no answer is in two pairs."""
    chosen, rejected = good_and_bad(ranked, rule.pair_depth)
    return list(zip(chosen, reversed(rejected), strict=False))
