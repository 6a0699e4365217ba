"""The number of a reward model's head, as pipeline/judge.py computes it.

The head is linear, and reads the last hidden state of the last token of question and answer in the model's own chat
format: models/auto/weights/value_head.py.
"""

from collections.abc import Mapping

import numpy as np

from data_engine.rewards import RewardSettings, StageColumns


def rewards(computed: Mapping[str, StageColumns], settings: RewardSettings) -> dict[str, np.ndarray]:
    """The reward model's number of each answer."""
    return {"scalar": computed["scalar"].scores}
