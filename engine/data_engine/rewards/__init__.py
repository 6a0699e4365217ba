"""Sources of reward: from what the stages of a source computed about an answer to the numbers that rank it.

The table is stages.SOURCES. A source's file has the function that its line names,

    rewards(columns: Mapping[str, np.ndarray], settings: RewardSettings) -> Rewards

where `columns` has what each of the source's stages wrote about one answer, by the stage's name: its token log-probs,
or its score as an array of one. It may also hold the runner of its stages, see pipeline/runner.py.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RewardSettings:
    """What rewards depend on besides what the stages computed."""

    beta: float
    """DPO's scale of the reward"""
    same_tokenizer: bool
    """all models read the same token ids, so that their log-probs match token by token"""


@dataclass(frozen=True, slots=True)
class Rewards:
    """The rewards of one answer; NaN where there is no finite one, None where the models' tokens do not match up."""

    sum: float | None
    avg: float | None
    min: float | None = None
    last: float | None = None


NOT_FINITE = Rewards(math.nan, math.nan, math.nan, math.nan)
NOT_SCORED = Rewards(None, None)
