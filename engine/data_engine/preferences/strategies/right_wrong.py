"""Every right answer with every wrong one, as MMPR (arXiv:2411.10442) pairs answers by their correctness.

Of the pairs of a question, the filter per_idx draws --max_pairs.
"""

from data_engine.preferences.answers import Ranked
from data_engine.preferences.strategies import PairRule


def pick(ranked: Ranked, rule: PairRule) -> list[tuple[int, int]]:
    """(chosen, rejected) by the first reward: from `rule.right` on an answer is right."""
    order = ranked.best_first()
    right = [place for place in order if ranked.rewards[0][place] >= rule.right]
    return [(good, bad) for good in right for bad in order[len(right) :]]
