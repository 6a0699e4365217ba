"""Questions from a jsonl file: the offset of each line is kept in memory, and lines are read on demand."""

import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_engine.errors import UserError
from data_engine.store.file_hashes import HashFiles

# The longest question fits, even with each byte of it written as \u00xx.
MAX_LINE_BYTES = 16 << 20
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.binary())])


class JsonlSource:
    """One JSON object a line; its image is a path or an object with a path.

    Text columns are binary: JSON may hold half surrogate pairs, which are not valid Unicode.
    """

    def __init__(self, path: Path):
        self._path = path
        self._offsets = array("q")
        self.columns: dict[str, pa.DataType] = {}
        digest, ids, offset = hashlib.sha256(), [], 0
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(
                        f'"{path}", line {number}: more than {MAX_LINE_BYTES} bytes; an image is given by its path'
                    )
                digest.update(line)
                if line.strip():
                    row = self._parse(f"line {number}", line)
                    self.columns = self.columns or {name: _type(name) for name in row}
                    ids.append(self._checked_id(number, row, ids))
                    self._offsets.append(offset)
                offset += len(line)
        self._digest = digest.hexdigest()
        if "idx" in self.columns:
            self.columns["idx"] = pa.int64() if ids and isinstance(ids[0], int) else pa.string()
            self._ids = pa.array(ids, self.columns["idx"])

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        return pa.chunked_array([self._ids])[:limit]

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([(name, self.columns[name]) for name in columns])
        with open(self._path, "rb") as file:
            for row in rows:
                file.seek(self._offsets[row])
                values = self._parse(f"behind byte {self._offsets[row]}", file.readline(MAX_LINE_BYTES))
                cells = {name: _cell(name, values.get(name)) for name in columns}
                yield pa.RecordBatch.from_pylist([cells], schema)

    def fingerprint(self, hash_files: HashFiles) -> str:
        # The file was read as a whole when it was opened.
        return self._digest

    def _checked_id(self, number: int, row: dict, before: list) -> int | str | None:
        value = row.get("idx")
        if "idx" not in self.columns:
            return None
        text = json.dumps(value) if "idx" in row else "missing"
        if not _is_id(value):
            raise UserError(f'"{self._path}", line {number}: idx is {text}; expected text or a 64-bit whole number')
        if before and type(before[0]) is not type(value):
            raise UserError(
                f'"{self._path}", line {number}: idx is {text}, in the first line {json.dumps(before[0])}; '
                "write all of them as numbers or all as text"
            )
        return value

    def _parse(self, where: str, line: bytes) -> dict:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f'"{self._path}", {where}: not JSON: {error}') from None
        if not isinstance(row, dict):
            raise UserError(f'"{self._path}", {where}: not an object {{"idx": ..., ...}}')
        return row


def _type(name: str) -> pa.DataType:
    return _IMAGE if name == "image" else pa.binary()


def _cell(name: str, value: object) -> object:
    """A cell of the type that _type says. A question that is no text becomes null; an optional column becomes JSON."""
    if name == "idx" or value is None:
        return value
    if name == "image":
        path = value.get("path") if isinstance(value, dict) else value
        return {"bytes": None, "path": _bytes(path) if isinstance(path, str) else None}
    if isinstance(value, str):
        return _bytes(value)
    return None if name == "question" else json.dumps(value).encode()


def _bytes(text: str) -> bytes:
    # Half a surrogate pair becomes bytes that are not UTF-8; dataset.py then refuses the row.
    return text.encode("utf-8", "surrogatepass")


def _is_id(value: object) -> bool:
    if type(value) is str:
        return value == value.encode("utf-8", "ignore").decode()
    return type(value) is int and -(2**63) <= value < 2**63
