"""A judge's yes or no: log p(yes) - log p(no) behind its question about an answer, as pipeline/judge.py scores it.

p(yes) is the sum over those of WORDS["yes"] that are one token of the judge's tokenizer, with or without a space before
them; p(no) likewise. What it is asked is yesno_template.py's.
"""

from collections.abc import Mapping

import numpy as np

from data_engine.rewards import RewardSettings, StageColumns

WORDS = {"yes": ("Yes", "yes", "YES"), "no": ("No", "no", "NO")}


def rewards(computed: Mapping[str, StageColumns], settings: RewardSettings) -> dict[str, np.ndarray]:
    """The judge's score of each answer."""
    return {"yesno": computed["yesno"].scores}
