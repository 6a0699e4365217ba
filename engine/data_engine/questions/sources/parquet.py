"""Questions from parquet files, read a few rows at a time, whatever the size of row groups and cells."""

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.errors import UserError, first_line
from data_engine.questions.images import MAX_FILE_BYTES
from data_engine.questions.sources.base import BATCH_ROWS, LFS_POINTER, is_lfs_pointer, refuse
from data_engine.questions.sources.column_names import SAME_NAMES, ColumnNames
from data_engine.questions.sources.column_types import as_type, columns_of, plain_values, unified
from data_engine.store.file_hashes import HashFiles

# Limit of the unpacked bytes of one column in a batch; a single row may exceed it.
MAX_BATCH_BYTES = 1 << 28
_BUFFER_BYTES = 1 << 20
# The header of a page may repeat its smallest and its largest cell.
MAX_ROW_BYTES = 3 * MAX_FILE_BYTES + _BUFFER_BYTES


class ParquetSource:
    """Parquet files, one behind the other; those of their columns that are spelled differently have one type."""

    image_root, warnings = None, ()

    def __init__(self, files: list[Path], names: ColumnNames = SAME_NAMES):
        self._files, self.names = files, names
        self.columns: dict[str, pa.DataType] = {}
        # (file, row group, its first row, the row after its last)
        self._groups: list[tuple[Path, int, int, int]] = []
        start = 0
        for file in self._files:
            with _open_parquet(file) as opened:
                columns = columns_of(opened.schema_arrow, f'dataset file "{file}"', names)
                self.columns = self._unified_columns(file, columns) if self.columns else columns
                _check_cell_sizes(file, opened.metadata, tuple(map(names.in_dataset, names.are_read(columns))))
                for group in range(opened.num_row_groups):
                    stop = start + opened.metadata.row_group(group).num_rows
                    self._groups.append((file, group, start, stop))
                    start = stop
        # (key of a row group that was read in part, its next row, its batches from there). Units mostly come in rising
        # order, so a file of one huge row group is read once, not once a unit.
        self._resume: tuple[tuple, int, Iterator[pa.RecordBatch]] | None = None
        # The file read last stays open, so that its footer is not read again for each of its row groups.
        self._open: tuple[Path, pq.ParquetFile] | None = None

    def __len__(self) -> int:
        return self._groups[-1][3] if self._groups else 0

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        chunks: list[pa.Array] = []
        for file in self._files:
            with _open_parquet(file) as opened, _reading(file):
                found = opened.read([self.names.in_dataset("idx")], use_threads=False).column(0).chunks
                chunks += [as_type(chunk, self.columns["idx"]) for chunk in found]
            if limit is not None and sum(map(len, chunks)) >= limit:
                break
        return pa.chunked_array(chunks, self.columns["idx"])[:limit]

    def file_sizes(self) -> list[tuple[str, int]]:
        sizes: dict[Path, int] = {}
        for file, _, start, stop in self._groups:
            sizes[file] = sizes.get(file, 0) + stop - start
        return [(file.name, size) for file, size in sizes.items()]

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        first = bisect.bisect_right(self._groups, rows.start, key=lambda group: group[3])
        for file, group, start, _ in itertools.islice(self._groups, first, None):
            if start >= rows.stop:
                return
            yield from self._group_batches((file, group, tuple(columns)), start, rows)

    def values(self, column: pa.Array) -> list:
        return plain_values(column)

    def fingerprint(self, hash_files: HashFiles) -> str:
        return " ".join(hash_files(self._files))

    def _group_batches(self, key: tuple, position: int, rows: range) -> Iterator[pa.RecordBatch]:
        """The batches of one row group that overlap `rows`, cut to it; `position` is the group's first row."""
        resume, self._resume = self._resume, None
        if resume is not None and resume[0] == key and resume[1] <= rows.start:
            _, position, batches = resume
        else:
            batches = self._read_group(*key)
        for batch in batches:
            first, position = position, position + batch.num_rows
            if position > rows.start:
                yield batch[max(0, rows.start - first) : rows.stop - first]
            if position >= rows.stop:
                self._resume = (key, first, itertools.chain([batch], batches))
                return

    def _read_group(self, file: Path, group: int, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        if self._open is None or self._open[0] != file:
            self._open = (file, _open_parquet(file))
        opened = self._open[1]
        theirs = [self.names.in_dataset(name) for name in columns]
        chunks = map(opened.metadata.row_group(group).column, _places(opened.metadata, theirs))
        largest = max(chunk.total_uncompressed_size for chunk in chunks)
        # A cell is at most as large as its chunk; but one large cell of a dictionary may occur in every row.
        rows = min(BATCH_ROWS, max(1, MAX_BATCH_BYTES // max(1, largest)))
        with _reading(file):
            # One may stand for two.
            for batch in opened.iter_batches(rows, [group], [*dict.fromkeys(theirs)], use_threads=False):
                cells = [
                    as_type(batch.column(column), self.columns[name])
                    for column, name in zip(theirs, columns, strict=True)
                ]
                yield pa.RecordBatch.from_arrays(cells, list(columns))

    def _unified_columns(self, file: Path, columns: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
        """The columns of all files up to `file`. Raises UserError where it has others than those before it."""
        types = dict(self.columns)
        for name in self.names.are_read([*self.columns, *columns]):
            before, here = self.columns.get(name), columns.get(name)
            if before is None and here is None:
                continue
            both = unified(before, here) if before is not None and here is not None else None
            if both is None:
                shown = self.names.in_dataset(name)
                before, here = (f"of type {type}" if type is not None else "missing" for type in (before, here))
                raise UserError(
                    f'dataset file "{file}" has another schema than "{self._files[0].name}": column "{shown}" is '
                    f"{here}, in the files before it {before}; write all files of --dataset_path with the same columns"
                )
            types[name] = both
        return types


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what Arrow raises about a file into a UserError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        refuse(file.is_file() and is_lfs_pointer(file), f'dataset file "{file}" {LFS_POINTER}')
        raise UserError(
            f'dataset file "{file}" is cut off, broken or not a parquet file: {first_line(error)}'
        ) from None


def _check_cell_sizes(file: Path, metadata: pq.FileMetaData, columns: Sequence[str]) -> None:
    """Refuse, before unpacking, a row group whose mean cell would be larger than an image may be."""
    places = _places(metadata, columns)
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        num_rows = row_group.num_rows
        for chunk in map(row_group.column, places):
            # A list of images has more values than rows.
            num_cells = max(1, num_rows, chunk.num_values)
            refuse(
                chunk.total_uncompressed_size > MAX_ROW_BYTES * num_cells,
                f'dataset file "{file}": column "{chunk.path_in_schema}" unpacks to {chunk.total_uncompressed_size} '
                f"bytes in the {num_rows} rows of row group {group}, more than {MAX_ROW_BYTES} bytes a row",
            )


def _places(metadata: pq.FileMetaData, columns: Sequence[str]) -> list[int]:
    """Where the `columns`, and their nested fields, stand in each row group."""
    paths = (f"{metadata.schema.column(place).path}." for place in range(metadata.num_columns))
    return [place for place, path in enumerate(paths) if any(path.startswith(f"{column}.") for column in columns)]


def _open_parquet(file: Path) -> pq.ParquetFile:
    with _reading(file):
        # pre_buffer would read whole row groups; with buffer_size, pages are read on demand.
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
