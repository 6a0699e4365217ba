"""DPO's implicit reward: the token log-probs of answers under both models in, their rewards out.

arXiv:2305.18290, eq. 5, without the term that is the same for every answer to a question.
"""

import math
from collections.abc import Mapping

import numpy as np

from data_engine.rewards import RewardSettings, StageColumns, Tokens, differences


def rewards(computed: Mapping[str, StageColumns], settings: RewardSettings) -> dict[str, np.ndarray]:
    """The rewards of answers from their token log-probs under both models: the reward model, and that before DPO, which
    is the reference model where the run names one, and else the instruct model.
    """
    function = token_rewards if settings.same_tokenizer else text_rewards
    before = next(name for name in computed if name != "reward_logps")
    found = function(computed[before].tokens, computed["reward_logps"].tokens, settings.beta)
    return {f"implicit.{name}": column for name, column in found.items()}


def token_rewards(instruct: Tokens, reward: Tokens, beta: float) -> dict[str, np.ndarray]:
    """Rewards where both models scored the same tokens: beta times the sum, mean, min and last of d, in float64.

    d_t = log p_reward(t) - log p_instruct(t). An answer without tokens, or with a log-prob that is not finite, has NaN.
    Raises AnswerError for the first answer of which the models scored different numbers of tokens.
    """
    told = (
        "both models must have scored the same tokens, got {less} log-probs from the model before DPO and {of} from "
        "the reward model"
    )
    difference = differences(reward, instruct, told)
    lengths, total = difference.lengths, exact_sums(difference)
    finite = np.isfinite(total)
    least, last = np.full(len(lengths), math.nan), np.full(len(lengths), math.nan)
    starts = difference.offsets[:-1][lengths > 0]
    if len(starts):
        least[lengths > 0] = np.minimum.reduceat(difference.values, starts)
        last[lengths > 0] = difference.values[difference.offsets[1:][lengths > 0] - 1]
    found = {"sum": total, "avg": total / np.maximum(lengths, 1), "min": least, "last": last}
    return {name: np.where(finite, beta * column, math.nan) for name, column in found.items()}


def text_rewards(instruct: Tokens, reward: Tokens, beta: float) -> dict[str, np.ndarray]:
    """Rewards where the models split the same text into different tokens: only sums and means can be compared."""
    before, after = exact_sums(instruct), exact_sums(reward)
    means = after / np.maximum(reward.lengths, 1) - before / np.maximum(instruct.lengths, 1)
    return {"sum": beta * (after - before), "avg": beta * means}


def exact_sums(tokens: Tokens) -> np.ndarray:
    """The sum of each answer's numbers, float64 [answers]; NaN for an answer with none, or with one not finite.

    fsum is exact, so no CPU sums in another order.
    """
    values, offsets = tokens.values.tolist(), tokens.offsets.tolist()
    usable = tokens.lengths > 0
    usable[np.searchsorted(tokens.offsets, np.flatnonzero(~np.isfinite(tokens.values)), "right") - 1] = False
    return np.array(
        [
            math.fsum(values[start:end]) if sound else math.nan
            for start, end, sound in zip(offsets[:-1], offsets[1:], usable.tolist(), strict=True)
        ],
        np.float64,
    )
