"""Rewards: the token log-probs of one answer under both models in, its rewards out; and what never ranks.

DPO's implicit reward, arXiv:2305.18290, eq. 5, without the term that is the same for every answer to a question.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from data_engine.rewards import NOT_FINITE, Rewards, RewardSettings

REASONS = {
    "not_scored": "one of the two models gave it no log-probs",
    "unfinished_thought": "its thought does not end, so that no answer follows",
    "empty": "it has no text",
    "marker": "its text contains a marker of the prompt format",
    "duplicate": "an answer with a lower sample_index has the same text",
    "non_finite": "its reward is not a finite number",
    "alone": "no other answer to the question is left to compare it with",
}
"""Why an answer is not ranked: name, as counted in the funnel, and meaning."""


def rewards(columns: Mapping[str, np.ndarray], settings: RewardSettings) -> Rewards:
    """The rewards of an answer from its token log-probs under both models."""
    function = token_rewards if settings.same_tokenizer else text_rewards
    return function(columns["instruct_logps"], columns["reward_logps"], settings.beta)


def token_rewards(instruct_logps: Sequence[float], reward_logps: Sequence[float], beta: float) -> Rewards:
    """Rewards where both models scored the same tokens: beta times the sum, mean, min and last of d, in float64.

    d_t = log p_reward(t) - log p_instruct(t). Raises ValueError where the two lists differ in length.
    """
    if len(instruct_logps) != len(reward_logps):
        raise ValueError(
            f"both models must have scored the same tokens, got {len(instruct_logps)} log-probs from the instruct "
            f"model and {len(reward_logps)} from the reward model"
        )
    instruct, reward = np.asarray(instruct_logps, np.float64), np.asarray(reward_logps, np.float64)
    if not len(instruct) or not (np.isfinite(instruct).all() and np.isfinite(reward).all()):
        return NOT_FINITE
    difference = reward - instruct
    # fsum is exact, so no CPU sums in another order.
    total = math.fsum(difference)
    return Rewards(
        sum=beta * total,
        avg=beta * (total / len(difference)),
        min=beta * float(difference.min()),
        last=beta * float(difference[-1]),
    )


def text_rewards(instruct_logps: Sequence[float], reward_logps: Sequence[float], beta: float) -> Rewards:
    """Rewards where the models split the same text into different tokens: only sums and means can be compared."""
    instruct, reward = np.asarray(instruct_logps, np.float64), np.asarray(reward_logps, np.float64)
    if not (len(instruct) and len(reward) and np.isfinite(instruct).all() and np.isfinite(reward).all()):
        return Rewards(math.nan, math.nan, None, None)
    instruct_sum, reward_sum = math.fsum(instruct), math.fsum(reward)
    return Rewards(
        sum=beta * (reward_sum - instruct_sum),
        avg=beta * (reward_sum / len(reward) - instruct_sum / len(instruct)),
        min=None,
        last=None,
    )


def unusable_text(answer: str | None, markers: Sequence[str] = ()) -> str | None:
    """The reason why an answer with this text never ranks, or None; `markers` are those of the prompt format.

    Text is None where a thought before it is not finished.
    """
    if answer is None:
        return "unfinished_thought"
    if not answer.strip():
        return "empty"
    return "marker" if any(marker in answer for marker in markers) else None


def unusable_reward(total: float | None, average: float | None) -> str | None:
    """The reason why an answer with these rewards never ranks, or None."""
    if total is None or average is None:
        return "not_scored"
    return None if math.isfinite(total) and math.isfinite(average) else "non_finite"
