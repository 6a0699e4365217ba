"""Where questions come from: parquet files, a jsonl file, or what the `datasets` library reads.

Every source has the same face: its columns, its ids, its fingerprint, and the rows of a range as record batches, read
a few rows at a time. Nothing here interprets a cell; dataset.py does.
"""

import bisect
import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.errors import UserError
from data_engine.questions.images import MAX_FILE_BYTES
from data_engine.questions.jsonl import JsonlSource
from data_engine.schemas import OPTIONAL_COLUMNS

REQUIRED_COLUMNS = ("idx", "question", "image")
BATCH_ROWS = 16
# What a batch's cells of one column may unpack to, unless a single row has more.
MAX_BATCH_BYTES = 1 << 28
# Room for the longest question, each byte of it written as \\u00xx.
MAX_LINE_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
# The header of a page may repeat its smallest and its largest cell.
MAX_ROW_BYTES = 3 * MAX_FILE_BYTES + _CHUNK_BYTES
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_FILE_ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".arrow")


class Source(Protocol):
    """A table of questions that can be read from any row on."""

    columns: dict[str, pa.DataType]

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        """The idx column, up to `limit` rows."""

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows of a run of consecutive rows, in order, in small batches."""

    def fingerprint(self) -> str:
        """In hex; the same for the same content wherever it lies."""


def open_source(path: str, split: str = "train", revision: str | None = None) -> Source:
    """The source that `path` names: parquet file or folder, jsonl file, `datasets` folder, or hub id.

    Raises UserError where there is none, where it cannot be read, or where split or revision do not apply to it.
    """
    local = Path(path)
    if (local / "dataset_dict.json").is_file() or (local / "dataset_info.json").is_file():
        _refuse(revision is not None, f'dataset_revision "{revision}" is for a hub dataset; "{path}" is a local folder')
        return DatasetsSource(_load_folder(path, split))
    if (
        not local.exists()
        and _HUB_ID.fullmatch(path)
        and not path.endswith(_FILE_ENDINGS)
        and not local.parent.exists()
    ):
        return DatasetsSource(_load_hub(path, split, revision))
    _refuse(not local.exists(), f'no file or folder at dataset_path "{path}"')
    for flag, value, default in (("dataset_split", split, "train"), ("dataset_revision", revision, None)):
        _refuse(value != default, f'{flag} "{value}" is for a `datasets` folder or a hub dataset; "{path}" is neither')
    return JsonlSource(local) if local.suffix in (".jsonl", ".ndjson") else ParquetSource(local)


class ParquetSource:
    """One parquet file, or a folder's files in the order of their names."""

    def __init__(self, path: Path):
        self._files = _parquet_files(path) if path.is_dir() else [path]
        self.columns: dict[str, pa.DataType] = {}
        # (file, row group, its first row, the row after its last)
        self._groups: list[tuple[Path, int, int, int]] = []
        start = 0
        for file in self._files:
            with _open_parquet(file) as opened:
                columns = {field.name: field.type for field in opened.schema_arrow}
                self.columns = self.columns or columns
                self._check_same_columns(file, columns)
                _check_cell_sizes(file, opened.metadata)
                for group in range(opened.num_row_groups):
                    stop = start + opened.metadata.row_group(group).num_rows
                    self._groups.append((file, group, start, stop))
                    start = stop
        # A row group that is read in part, the next row, and its batches from there: units mostly come in rising
        # order, so a file of one huge row group is read once and not once a unit.
        self._resume: tuple[tuple, int, Iterator[pa.RecordBatch]] | None = None
        # The file read last stays open: its footer tells about all of its row groups, and is not read for each.
        self._open: tuple[Path, pq.ParquetFile] | None = None

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        chunks: list[pa.Array] = []
        for file in self._files:
            with _open_parquet(file) as opened, _reading(file):
                chunks += opened.read(["idx"], use_threads=False).column(0).cast(self.columns["idx"]).chunks
            if limit is not None and sum(map(len, chunks)) >= limit:
                break
        return pa.chunked_array(chunks, self.columns["idx"])[:limit]

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        first = bisect.bisect_right(self._groups, rows.start, key=lambda group: group[3])
        for file, group, start, _ in itertools.islice(self._groups, first, None):
            if start >= rows.stop:
                return
            yield from self._group_batches((file, group, tuple(columns)), start, rows)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self._files:
            with open(file, "rb") as stream:
                size = stream.seek(-8, 2) + 8
                footer_size = int.from_bytes(stream.read(4), "little")
                stream.seek(-8 - footer_size, 2)
                digest.update(size.to_bytes(8, "little") + stream.read(footer_size))
        return digest.hexdigest()

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
        largest = max(chunk.total_uncompressed_size for chunk in _chunks(opened.metadata, group, columns))
        # No cell has more than its chunk; but a dictionary's one large cell can stand in each row.
        rows = min(BATCH_ROWS, max(1, MAX_BATCH_BYTES // max(1, largest)))
        with _reading(file):
            yield from opened.iter_batches(rows, [group], list(columns), use_threads=False)

    def _check_same_columns(self, file: Path, columns: dict[str, pa.DataType]) -> None:
        for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS):
            first, here = self.columns.get(name), columns.get(name)
            if first != here and not (first and here and is_text(first) and is_text(here)):
                first, here = (f"of type {type}" if type else "missing" for type in (first, here))
                raise UserError(
                    f'dataset file "{file}" has another schema than "{self._files[0].name}": '
                    f'column "{name}" is {here}, in the first file {first}'
                )


class DatasetsSource:
    """A `datasets.Dataset`, memory-mapped; its Arrow format never opens a file that an image column names."""

    def __init__(self, dataset):
        self._dataset = dataset.with_format("arrow")
        self.columns = {field.name: field.type for field in dataset.features.arrow_schema}

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        return self._dataset.select_columns(["idx"])[:limit].column(0)

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        selected = self._dataset.select_columns(columns)
        for start in range(rows.start, rows.stop, BATCH_ROWS):
            yield from selected[start : min(start + BATCH_ROWS, rows.stop)].select(columns).to_batches()

    def fingerprint(self) -> str:
        # Arrow streams have no footer: the sizes, heads and tails of the files stand for their content.
        digest = hashlib.sha256(str(len(self._dataset)).encode())
        for file in self._dataset.cache_files:
            with open(file["filename"], "rb") as stream:
                size = stream.seek(0, 2)
                stream.seek(0)
                digest.update(size.to_bytes(8, "little") + stream.read(_CHUNK_BYTES))
                stream.seek(max(0, size - _CHUNK_BYTES))
                digest.update(stream.read(_CHUNK_BYTES))
        return digest.hexdigest()


def is_text(type: pa.DataType) -> bool:
    """Whether a column holds text, in any of Arrow's layouts, or nothing but nulls."""
    if pa.types.is_dictionary(type):
        type = type.value_type
    return type in (pa.string(), pa.large_string(), pa.string_view(), pa.null())


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise UserError(message)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Name the file that Arrow fails to read: what is on disk is the user's to mend."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f'dataset file "{file}" is cut off, broken or not a parquet file: {text}') from None


def _check_cell_sizes(file: Path, metadata: pq.FileMetaData) -> None:
    """Refuse a row group whose cells would be larger than an image may be, on average, before any of it is unpacked."""
    for group in range(metadata.num_row_groups):
        num_rows = metadata.row_group(group).num_rows
        for chunk in _chunks(metadata, group, (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)):
            _refuse(
                chunk.total_uncompressed_size > MAX_ROW_BYTES * max(1, num_rows),
                f'dataset file "{file}": column "{chunk.path_in_schema}" unpacks to {chunk.total_uncompressed_size} '
                f"bytes in the {num_rows} rows of row group {group}, more than {MAX_ROW_BYTES} bytes a row",
            )


def _chunks(metadata: pq.FileMetaData, group: int, columns: tuple[str, ...]) -> Iterator[pq.ColumnChunkMetaData]:
    """What the footer tells of a row group's `columns`, and of their parts."""
    chunks = map(metadata.row_group(group).column, range(metadata.num_columns))
    return (chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns)


def _parquet_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.glob("*.parquet") if not file.name.startswith((".", "_")))
    inside = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
    _refuse(not files, f'dataset_path "{folder}" has no .parquet file and no `datasets` dataset; it holds {inside}')
    return files


def _open_parquet(file: Path) -> pq.ParquetFile:
    with _reading(file):
        # pre_buffer would fetch whole row groups; with a buffer size, pages are read as they are needed.
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=_CHUNK_BYTES)


def _load_folder(path: str, split: str):
    import datasets

    try:
        found = datasets.load_from_disk(path)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f'"{path}" is not a folder that datasets.save_to_disk wrote: {error}') from None
    if isinstance(found, datasets.DatasetDict):
        _refuse(split not in found, f'"{path}" has no split "{split}"; dataset_split can be: {", ".join(found)}')
        return found[split]
    own = str(found.split or "train")
    _refuse(split not in ("train", own), f'"{path}" holds the split "{own}" alone; dataset_split is "{split}"')
    return found


def _load_hub(path: str, split: str, revision: str | None):
    import datasets

    try:
        return datasets.load_dataset(path, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f'dataset_path "{path}" is no file or folder here, and as a hub dataset '
            f'(split "{split}", revision {revision or "newest"}) it cannot be loaded: {error}'
        ) from None
