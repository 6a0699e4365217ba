"""Questions in: parquet, jsonl, a `datasets` folder or a hub id, read a few rows at a time, with the checks on them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(frozen=True)
class Question:
    """One row of the input. `image` is what images.decode takes: encoded bytes; None where the row has none."""

    idx: int | str
    question: str | None
    image: bytes | None
    image_path: str | None
    """the `path` field of the image struct, as it was"""
    extra: dict[str, str | None] = field(default_factory=dict)
    """those of records.OPTIONAL_COLUMNS that the input has"""


class Questions:
    """A dataset of questions: its size and ids at once, its rows streamed."""

    idx: list[int | str]
    idx_type: pa.DataType
    optional_columns: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.idx)

    def rows(self, rows: range) -> Iterator[Question]:
        """The questions of a run of consecutive rows, in order."""
        raise NotImplementedError
