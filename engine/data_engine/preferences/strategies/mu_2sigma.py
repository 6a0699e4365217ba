"""The best answer with the one nearest to mean - 2 standard deviations, by the first reward (arXiv:2502.16825)."""

import math

from data_engine.preferences.answers import Ranked
from data_engine.preferences.strategies import PairRule

FEWEST = 4


def pick(ranked: Ranked, rule: PairRule) -> list[tuple[int, int]]:
    """One pair a question of at least four answers; of answers that are equally near the lowest sample_index."""
    rewards = ranked.rewards[0]
    if len(rewards) < FEWEST:
        return []
    # Exact sums, so that no CPU picks another answer.
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((reward - mean) * (reward - mean) for reward in rewards) / len(rewards))
    best = ranked.best_first()[0]
    near = min(range(len(rewards)), key=lambda place: abs(rewards[place] - (mean - 2 * deviation)))
    return [(best, near)] if rewards[near] < rewards[best] else []
