"""Questions from text files of rows, JSON or CSV, as they are or packed with gzip.

The place of each row is kept in memory, and rows are read on demand.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_engine.errors import UserError
from data_engine.questions.sources.base import PROBLEM, refuse
from data_engine.questions.sources.cells import cells_of
from data_engine.questions.sources.column_names import NUMBERED, SAME_NAMES, ColumnNames
from data_engine.questions.sources.csv_rows import CsvRows
from data_engine.questions.sources.json_rows import JsonRows, told_of_rows_inside
from data_engine.questions.sources.text_file import Record, TextFile
from data_engine.schemas import INPUT_COLUMNS, OPTIONAL_COLUMNS
from data_engine.store.file_hashes import HashFiles

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
TEXT_ENDINGS = tuple(f"{ending}{gz}" for ending in (*JSON_ENDINGS, ".csv", ".tsv") for gz in ("", ".gz"))
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.binary())])


@dataclass
class _Part:
    """One of the files, and its place among all rows."""

    file: TextFile
    rows: JsonRows | CsvRows
    first: int
    num_rows: int = 0


class TextSource:
    """JSON objects or CSV records of files of one kind, one behind the other.

    An image is a path, base64 text, or an object with one of them.
    Images and messages are lists, or the text of such a list in JSON; messages stay JSON.
    The engine's text columns are binary: JSON may hold half surrogate pairs, which are not valid Unicode. All other
    columns hold JSON, in which these are escaped.
    """

    image_root, warnings = None, ()

    def __init__(self, paths: Sequence[Path], names: ColumnNames = SAME_NAMES):
        self.names = names
        self._parts: list[_Part] = []
        self._is_csv = _is_csv(paths[0])
        self._starts, self._sizes = array("q"), array("q")
        self.columns: dict[str, pa.DataType] = {}
        ids: list[int | str | None] = []
        for path in paths:
            self._add(path, ids)
        if "idx" in self.columns:
            if self._is_csv and all(map(_is_number, ids)):
                ids = list(map(int, ids))
            self.columns["idx"] = pa.int64() if ids and isinstance(ids[0], int) else pa.string()
            self._ids = pa.array(ids, self.columns["idx"])

    def _add(self, path: Path, ids: list[int | str | None]) -> None:
        """Find the rows of the next file, and add their ids."""
        file = TextFile(path)
        rows = CsvRows(file, self.names) if self._is_csv else JsonRows(file, self.names)
        part = _Part(file, rows, first=len(ids))
        # Looking at the names of each row alone would take as long as reading it.
        seen: set[str] = set()
        with file.opened() as stream:
            for record in rows.records(stream):
                if not seen.issuperset(record.row):
                    seen.update(record.row)
                    read = record.row if not self.columns else self.names.are_read(record.row)
                    self.columns |= {name: _type(name) for name in read}
                ids.append(self._checked_id(file, record, ids))
                self._starts.append(record.start)
                self._sizes.append(record.size)
        part.num_rows = len(ids) - part.first
        if part.num_rows == 1 and not self.columns.keys() & {"idx", "question", "messages", "image"}:
            told = told_of_rows_inside(path, record.row)
            refuse(told is not None, told or "")
        self._parts.append(part)

    def __len__(self) -> int:
        return len(self._starts)

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        return pa.chunked_array([self._ids])[:limit]

    def file_sizes(self) -> list[tuple[str, int]]:
        return [(part.file.path.name, part.num_rows) for part in self._parts if part.num_rows]

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([*((name, self.columns[name]) for name in columns), (PROBLEM, pa.string())])
        for part in self._parts:
            own = range(max(rows.start, part.first), min(rows.stop, part.first + part.num_rows))
            if own:
                yield from self._batches(part, own, columns, schema)

    def _batches(self, part: _Part, rows: range, columns: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with part.file.reopened() as stream:
            for row in rows:
                start = self._starts[row]
                stream.seek(start)
                data = stream.read(self._sizes[row])
                cells = cells_of(part.rows.parse(f"behind byte {start}", data), columns)
                yield pa.RecordBatch.from_pylist([cells], schema)

    def values(self, column: pa.Array) -> list:
        return [cell if cell is None else json.loads(cell) for cell in column.to_pylist()]

    def fingerprint(self, hash_files: HashFiles) -> str:
        return " ".join(hash_files([part.file.path for part in self._parts]))

    def _checked_id(self, file: TextFile, record: Record, before: list) -> int | str | None:
        if "idx" not in self.columns:
            return None
        value = record.row.get("idx")
        is_empty = self._is_csv and not value
        if _is_id(value) and not is_empty and (not before or type(before[0]) is type(value)):
            return value
        text = json.dumps(value)[:60] if "idx" in record.row else "missing"
        where = f'"{file.path}", {record.where}'
        if not _is_id(value):
            by_columns = isinstance(value, (dict, list))
            hint = "; a table is expected row by row, not by columns" if by_columns else NUMBERED
            raise UserError(f"{where}: idx is {text}; expected text or a 64-bit whole number{hint}")
        refuse(is_empty, f"{where}: idx is empty; expected text or a whole number{NUMBERED}")
        raise UserError(
            f"{where}: idx is {text}, in the first row {json.dumps(before[0])}; "
            "write all of them as numbers or all as text"
        )


def _is_csv(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def _type(name: str) -> pa.DataType:
    own = pa.binary() if name in (*INPUT_COLUMNS, *OPTIONAL_COLUMNS) else pa.string()
    return {"image": _IMAGE, "images": pa.list_(_IMAGE)}.get(name, own)


def _is_id(value: object) -> bool:
    if type(value) is str:
        return value == value.encode("utf-8", "ignore").decode()
    return type(value) is int and -(2**63) <= value < 2**63


def _is_number(text: str) -> bool:
    """Whether a text is a 64-bit whole number as it is usually written: 7, but neither 007 nor +7."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 20 and str(int(text)) == text and _is_id(int(text))
