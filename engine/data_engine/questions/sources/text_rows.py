"""Questions from a text file of rows, JSON or CSV, as it is or packed with gzip.

The place of each row is kept in memory, and rows are read on demand.
"""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_engine.errors import UserError
from data_engine.questions.sources.base import PROBLEM, refuse
from data_engine.questions.sources.cells import cells_of
from data_engine.questions.sources.column_names import SAME_NAMES, ColumnNames
from data_engine.questions.sources.csv_rows import CsvRows
from data_engine.questions.sources.json_rows import JsonRows
from data_engine.questions.sources.text_file import Record, TextFile
from data_engine.schemas import INPUT_COLUMNS, OPTIONAL_COLUMNS
from data_engine.store.file_hashes import HashFiles

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.binary())])


class TextSource:
    """JSON objects or CSV records; an image is a path, base64 text, or an object with one of them.

    Images and messages are lists, or the text of such a list in JSON; messages stay JSON.
    The engine's text columns are binary: JSON may hold half surrogate pairs, which are not valid Unicode. All other
    columns hold JSON, in which these are escaped.
    """

    def __init__(self, path: Path, names: ColumnNames = SAME_NAMES):
        self._file, self.names = TextFile(path), names
        self._rows = CsvRows(self._file, names) if _is_csv(path) else JsonRows(self._file, names)
        self._starts, self._sizes = array("q"), array("q")
        self.columns: dict[str, pa.DataType] = {}
        ids: list[int | str | None] = []
        with self._file.opened() as stream:
            for record in self._rows.records(stream):
                read = record.row if not self.columns else names.are_read(record.row)
                self.columns |= {name: _type(name) for name in read}
                ids.append(self._checked_id(record, ids))
                self._starts.append(record.start)
                self._sizes.append(record.size)
        if "idx" in self.columns:
            if isinstance(self._rows, CsvRows) and all(map(_is_number, ids)):
                ids = list(map(int, ids))
            self.columns["idx"] = pa.int64() if ids and isinstance(ids[0], int) else pa.string()
            self._ids = pa.array(ids, self.columns["idx"])

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        return pa.chunked_array([self._ids])[:limit]

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([*((name, self.columns[name]) for name in columns), (PROBLEM, pa.string())])
        with self._file.reopened() as stream:
            for row in rows:
                start = self._starts[row]
                stream.seek(start)
                data = stream.read(self._sizes[row])
                cells = cells_of(self._rows.parse(f"behind byte {start}", data), columns)
                yield pa.RecordBatch.from_pylist([cells], schema)

    def values(self, column: pa.Array) -> list:
        return [cell if cell is None else json.loads(cell) for cell in column.to_pylist()]

    def fingerprint(self, hash_files: HashFiles) -> str:
        return " ".join(hash_files([self._file.path]))

    def _checked_id(self, record: Record, before: list) -> int | str | None:
        value = record.row.get("idx")
        if "idx" not in self.columns:
            return None
        text = json.dumps(value)[:60] if "idx" in record.row else "missing"
        where = f'"{self._file.path}", {record.where}'
        if not _is_id(value):
            by_columns = "; a table is expected row by row, not by columns" if isinstance(value, (dict, list)) else ""
            raise UserError(f"{where}: idx is {text}; expected text or a 64-bit whole number{by_columns}")
        refuse(isinstance(self._rows, CsvRows) and not value, f"{where}: idx is empty; expected text or a whole number")
        if before and type(before[0]) is not type(value):
            raise UserError(
                f"{where}: idx is {text}, in the first row {json.dumps(before[0])}; "
                "write all of them as numbers or all as text"
            )
        return value


def _is_csv(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".csv")


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
