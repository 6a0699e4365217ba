"""What every source of questions offers, and what the kinds of sources share."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from data_engine.errors import UserError
from data_engine.questions.sources.column_names import ColumnNames
from data_engine.store.file_hashes import HashFiles

BATCH_ROWS = 16
PROBLEM = "problem"
LFS_POINTER = "is a Git LFS pointer, not the data; run `git lfs pull` in its folder"
_LFS_BEGINS = b"version https://git-lfs.github.com/spec/"


class Source(Protocol):
    """A table of questions that can be read from any row on."""

    columns: dict[str, pa.DataType]
    names: ColumnNames
    """what the dataset calls them"""
    image_root: Path | None
    """the folder itself, where the source is a folder of pictures"""
    warnings: Sequence[str]
    """what a person should know of its files"""

    def __len__(self) -> int:
        """Its rows."""

    def file_sizes(self) -> list[tuple[str, int]]:
        """(name, rows) of each file, in order; [] where rows are not told apart by files."""

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        """The idx column, up to `limit` rows."""

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Consecutive rows, in order, in small batches of the columns asked for, in the types of `columns`.

        A source whose cells may have no place in a column adds a text column PROBLEM: null, or what is wrong.
        """

    def values(self, column: pa.Array) -> list:
        """The cells of a column of a batch that is none of the engine's own, as Python values."""

    def fingerprint(self, hash_files: HashFiles) -> str:
        """In hex, of every byte that rows are read from; the same for the same content, whatever its path."""


def refuse(wrong: bool, message: str) -> None:
    """Raise UserError with that message."""
    if wrong:
        raise UserError(message)


def is_lfs_pointer(file: Path) -> bool:
    """Whether a repository was cloned without its large files: then a few lines of text stand in the place of each."""
    with open(file, "rb") as stream:
        return stream.read(len(_LFS_BEGINS)) == _LFS_BEGINS


def choose_split(path: object, names: Sequence[str], split: str | None) -> str:
    """The split that the user named, or the only one. Raises UserError, with their names, where that is none."""
    refuse(not names, f'dataset_path "{path}" has no split')
    known = ", ".join(names)
    if split is None:
        refuse(len(names) > 1, f'dataset_path "{path}" has several splits: {known}; choose one with --dataset_split')
        return names[0]
    refuse(split not in names, f'"{path}" has no split "{split}"; dataset_split can be: {known}')
    return split
