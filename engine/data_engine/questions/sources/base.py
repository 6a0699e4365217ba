"""What every source of questions offers, and what the kinds of sources share."""

from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from data_engine.errors import UserError
from data_engine.store.file_hashes import HashFiles

REQUIRED_COLUMNS = ("idx", "question", "image")
BATCH_ROWS = 16


class Source(Protocol):
    """A table of questions that can be read from any row on."""

    columns: dict[str, pa.DataType]

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        """The idx column, up to `limit` rows."""

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Consecutive rows, in order, in small batches."""

    def fingerprint(self, hash_files: HashFiles) -> str:
        """In hex, of every byte that rows are read from; the same for the same content, whatever its path."""


def is_text(type: pa.DataType) -> bool:
    """Whether a column holds text, in any of Arrow's layouts, or nothing but nulls."""
    if pa.types.is_dictionary(type):
        type = type.value_type
    return type in (pa.string(), pa.large_string(), pa.string_view(), pa.null())


def refuse(wrong: bool, message: str) -> None:
    """Raise UserError with that message."""
    if wrong:
        raise UserError(message)
