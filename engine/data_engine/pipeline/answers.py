"""The answers of a unit of stage 0, as the stages of reward read them."""

from collections.abc import Sequence
from itertools import groupby

import pyarrow as pa

KEY_AND_TEXT = ("idx", "sample_index", "answer")


def by_question(sampled: pa.Table, columns: Sequence[str] | None = None) -> dict[int | str, list[dict]]:
    """The rows of each question's answers, in their order; `columns` are read, None: all.

    One whose thought is not finished is no answer: there is nothing of it to look at.
    """
    table = sampled if columns is None else sampled.select(list(columns))
    rows = (row for row in table.to_pylist() if row["answer"] is not None)
    return {idx: list(group) for idx, group in groupby(rows, key=lambda row: row["idx"])}
