"""The rewards of a source that may be asked about several aspects of an answer: a column each, and their mean."""

import numpy as np
import pyarrow as pa

from data_engine.schemas import score_name
from data_engine.stages import MEAN


def rewards_of(source: str, table: pa.Table) -> dict[str, np.ndarray]:
    """The score of each answer as SOURCE; of several aspects, that of each as SOURCE.NAME, and their mean.

    Numbers that an answer lacks are masked. Where one of them is, so is the mean: one over the others would be compared
    with full ones.
    """
    if (score := score_name("")) in table.column_names:
        return {source: table[score].to_numpy()}
    names = [name for name in table.column_names if name.startswith(f"{score}_")]
    found = {f"{source}.{name.removeprefix(f'{score}_')}": _masked(table[name]) for name in names}
    # An aspect may be called so.
    return {f"{source}.{MEAN}": sum(found.values()) / len(found), **found}


def _masked(column: pa.ChunkedArray) -> np.ma.MaskedArray:
    return np.ma.masked_array(column.to_numpy(), column.is_null().to_numpy())
