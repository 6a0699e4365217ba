"""Every good answer with every bad one, as the RLAIF-V data engine pairs them.

A good answer is in the top `pair_depth` by total reward and by reward per token, a bad one in the bottom by both.
"""

from collections.abc import Sequence

from data_engine.preferences.strategies import PairRule, RewardedAnswer, ranking


def pick(ranked: Sequence[RewardedAnswer], rule: PairRule) -> list[tuple[RewardedAnswer, RewardedAnswer]]:
    """(chosen, rejected): the best chosen answer first, with its rejected ones from the best to the worst."""
    by_sum, by_avg = ranking(ranked, "sum"), ranking(ranked, "avg")
    depth = rule.pair_depth
    top = _indexes(by_sum[:depth]) & _indexes(by_avg[:depth])
    bottom = _indexes(by_sum[-depth:]) & _indexes(by_avg[-depth:])
    # With fewer than 2 * depth answers the two can overlap; an answer in both is used on neither side.
    chosen = [row for row in by_sum if row["sample_index"] in top - bottom]
    rejected = [row for row in by_sum if row["sample_index"] in bottom - top]
    return [(good, bad) for good in chosen for bad in rejected]


def _indexes(answers: Sequence[RewardedAnswer]) -> set[int]:
    return {row["sample_index"] for row in answers}
