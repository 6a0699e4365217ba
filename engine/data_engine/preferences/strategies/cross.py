"""Every good answer with every bad one, as the RLAIF-V data engine pairs them.

A good answer is in the top `pair_depth` by each reward that ranks, a bad one in the bottom by each.
"""

from data_engine.preferences.answers import Ranked
from data_engine.preferences.strategies import PairRule


def pick(ranked: Ranked, rule: PairRule) -> list[tuple[int, int]]:
    """(chosen, rejected): the best chosen answer first, with its rejected ones from the best to the worst."""
    chosen, rejected = good_and_bad(ranked, rule.pair_depth)
    return [(good, bad) for good in chosen for bad in rejected]


def good_and_bad(ranked: Ranked, depth: int) -> tuple[list[int], list[int]]:
    """The good answers and the bad ones, each from the best to the worst by the first reward."""
    rankings = [ranked.best_first(by) for by in range(len(ranked.rewards))]
    top = set(rankings[0][:depth]).intersection(*(order[:depth] for order in rankings[1:]))
    bottom = set(rankings[0][-depth:]).intersection(*(order[-depth:] for order in rankings[1:]))
    # With fewer than 2 * depth answers the two can overlap; an answer in both is used on neither side.
    chosen = [place for place in rankings[0] if place in top and place not in bottom]
    rejected = [place for place in rankings[0] if place in bottom and place not in top]
    return chosen, rejected
