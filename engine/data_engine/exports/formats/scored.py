"""Every answer of a run with its rewards and its places in the rankings. Data to look at, or to make pairs of anew.

Nothing is cleaned or left out: questions stand as the dataset has them, answers as they were sampled, also those that
no trainer should read. A training set made of it must see to that itself.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_engine import schemas
from data_engine.exports.base import ExportSource
from data_engine.exports.cleaned import Cleaned
from data_engine.exports.features import with_features
from data_engine.exports.parquet_files import write_files

# parquet_files counts batches; 100 of them make a row group.
BATCH_ROWS = 50


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write folder/scored*.parquet, a row an answer, in the order of the questions, without pictures or cleaning."""
    source = cleaned.source
    schema = schema_of(source)
    num_rows = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal num_rows
        waiting = []
        for row in _rows(source):
            waiting.append(row)
            num_rows += 1
            if len(waiting) == BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(waiting, schema)
                waiting = []
        if waiting:
            yield pa.RecordBatch.from_pylist(waiting, schema)

    write_files(folder, "scored", batches(), schema)
    return num_rows


def schema_of(source: ExportSource) -> pa.Schema:
    """schemas.scored, with the text of the question and what the input calls its picture."""
    scored = schemas.scored(source.questions.idx_type, source.rewards, source.rank_by)
    return with_features(pa.schema([*scored, pa.field("question", pa.string()), pa.field("image_path", pa.string())]))


def _rows(source: ExportSource) -> Iterator[dict]:
    for group in source.with_questions(source.answers):
        columns = {"question": group.question.question, "image_path": group.question.image_path}
        yield from ({**row, **columns} for row in group.rows)
