"""Columns that a dataset lacks: numbers of its rows as idx, and one question for all of them."""

from collections.abc import Iterator

import pyarrow as pa

from data_engine.questions.sources.base import BATCH_ROWS, PROBLEM, Source, refuse
from data_engine.store.file_hashes import HashFiles


def with_added(source: Source, question: str | None, name: str) -> Source:
    """The source with rows numbered from 0 where --columns says `idx=`, and with `question` in each row, if any.

    Raises UserError where the dataset has questions of its own.
    """
    added = {"idx": pa.int64()} if source.names.in_dataset("idx") == "" else {}
    if question is not None:
        if source.columns:
            # The question that is added would stand for a column that --columns names and that is not there.
            source.names.require_there(source.columns, name)
        for column in ("question", "messages"):
            theirs = source.names.in_dataset(column)
            refuse(
                column in source.columns,
                f'question is asked of datasets without questions of their own, and {name} has the column "{theirs}": '
                f"leave --question out, or leave the column unread by --columns {column}=",
            )
        added["question"] = pa.string()
    return Added(source, added, question) if added and source.columns else source


class Added:
    """A source with columns beside its own."""

    def __init__(self, source: Source, added: dict[str, pa.DataType], question: str | None):
        self._source, self._added, self._question = source, added, question
        self.names, self.columns = source.names, source.columns | added
        self.image_root, self.warnings = source.image_root, source.warnings

    def __len__(self) -> int:
        return len(self._source)

    def file_sizes(self) -> list[tuple[str, int]]:
        return self._source.file_sizes()

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        if "idx" not in self._added:
            return self._source.ids(limit)
        return pa.chunked_array([pa.array(range(len(self))[:limit], pa.int64())])

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        own = [name for name in columns if name not in self._added]
        for batch in self._source.batches(rows, own) if own else _empty(range(len(self))[rows.start : rows.stop]):
            cells = {name: batch.column(name) for name in own}
            if "question" in columns and "question" in self._added:
                cells["question"] = pa.array([self._question] * batch.num_rows, pa.string())
            told = [PROBLEM] if PROBLEM in batch.schema.names else []
            arrays = [*(cells[name] for name in columns), *map(batch.column, told)]
            yield pa.RecordBatch.from_arrays(arrays, [*columns, *told])

    def values(self, column: pa.Array) -> list:
        return self._source.values(column)

    def fingerprint(self, hash_files: HashFiles) -> str:
        return self._source.fingerprint(hash_files)


def _empty(rows: range) -> Iterator[pa.RecordBatch]:
    """Batches without a column."""
    for start in range(rows.start, rows.stop, BATCH_ROWS):
        numbers = pa.array(range(start, min(start + BATCH_ROWS, rows.stop)))
        yield pa.RecordBatch.from_arrays([numbers], ["row"])
