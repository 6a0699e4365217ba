"""How much of an answer the image decides: the token log-probs of one model with the image and without it, compared.

c_t = log p(y_t | image, question) - log p(y_t | question) of the instruct model. arXiv:2412.14487 weighs tokens by it,
arXiv:2602.01769 ranks by it as a multimodal implicit reward. It has no beta: nothing was trained by it.
"""

from collections.abc import Mapping

import numpy as np

from data_engine.rewards import RewardSettings, StageColumns, Tokens, differences
from data_engine.rewards.implicit import exact_sums


def rewards(computed: Mapping[str, StageColumns], settings: RewardSettings) -> dict[str, np.ndarray]:
    """The sum and the mean of c over an answer's tokens, in float64."""
    total, lengths = sums(computed["instruct_logps"].tokens, computed["contrast_logps"].tokens)
    return {"contrast.sum": total, "contrast.avg": total / np.maximum(lengths, 1)}


def sums(seeing: Tokens, blind: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """The sum of c of each answer, NaN for one without tokens or with a log-prob that is not finite; and its tokens.

    Raises AnswerError for the first answer of which different numbers of tokens were scored.
    """
    told = (
        "the same tokens must have been scored with the image and without it, got {of} log-probs with it and {less} "
        "without"
    )
    difference = differences(seeing, blind, told)
    return exact_sums(difference), difference.lengths
