"""The best answer with the worst: one pair a question, as DICE (arXiv:2406.09760) and LLaVA-Critic make them."""

from data_engine.preferences.answers import Ranked, best_first
from data_engine.preferences.strategies import PairRule


def pick(ranked: Ranked, rule: PairRule) -> list[tuple[int, int]]:
    """The answer with the lowest mean rank over the rewards, and the one with the highest; ties by sample_index.

    No pair where all have the same mean rank, as two answers do that two rewards rank in opposite orders.
    """
    ranks = [0] * len(ranked)
    for by in range(len(ranked.rewards)):
        for rank, place in enumerate(ranked.best_first(by)):
            ranks[place] += rank
    order = best_first([-rank for rank in ranks])
    best, worst = order[0], order[-1]
    return [(best, worst)] if ranks[best] < ranks[worst] else []
