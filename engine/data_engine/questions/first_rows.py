"""A look at the first rows of a dataset before any model is loaded: where none can be used, a run would be in vain."""

import itertools
from collections import Counter

from data_engine.errors import BadRow, UserError
from data_engine.questions.dataset import Questions, read_image
from data_engine.questions.images import BadImage, Decode

LOOKED_AT = 32


def require_usable(questions: Questions, max_megapixels: float, decode: Decode) -> Counter:
    """Read and decode the first rows. Returns why rows cannot be used: reason -> rows.

    Raises UserError, with the most frequent reason, where none of them can be.
    """
    rows = questions.rows(range(min(LOOKED_AT, len(questions))))
    reasons, looked_at = Counter(), 0
    for question in itertools.islice(rows, LOOKED_AT):
        looked_at += 1
        try:
            read_image(question, max_megapixels, decode)
        except (BadRow, BadImage) as problem:
            reasons[str(problem)] += 1
    if reasons.total() == looked_at:
        reason, count = reasons.most_common(1)[0]
        raise UserError(
            f"none of the first {looked_at} rows of --dataset_path can be used; the most frequent reason ({count} "
            f"rows): {reason}"
        )
    return reasons
