"""Every good answer with every bad one, as the RLAIF-V data engine pairs them.

A good answer is among the best by total reward and by reward a token, a bad one among the worst by both.
"""

from collections.abc import Sequence

from data_engine.preferences.strategies import RewardedAnswer, ranking


def pick(ranked: Sequence[RewardedAnswer], pair_depth: int) -> list[tuple[RewardedAnswer, RewardedAnswer]]:
    """(chosen, rejected), where `pair_depth` says how deep into both ends of a ranking they are looked for."""
    by_sum, by_avg = ranking(ranked, "sum"), ranking(ranked, "avg")
    top = _indexes(by_sum[:pair_depth]) & _indexes(by_avg[:pair_depth])
    bottom = _indexes(by_sum[-pair_depth:]) & _indexes(by_avg[-pair_depth:])
    # With fewer than 2 * pair_depth answers the two can overlap, and an answer is not both good and bad.
    chosen = [row for row in by_sum if row["sample_index"] in top - bottom]
    rejected = [row for row in by_sum if row["sample_index"] in bottom - top]
    return [(good, bad) for good in chosen for bad in rejected]


def _indexes(answers: Sequence[RewardedAnswer]) -> set[int]:
    return {row["sample_index"] for row in answers}
