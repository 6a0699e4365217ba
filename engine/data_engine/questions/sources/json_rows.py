"""JSON as rows: one object a line, or an array of objects."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_engine.errors import UserError, python_command
from data_engine.questions.sources import text_file
from data_engine.questions.sources.base import refuse
from data_engine.questions.sources.column_names import ColumnNames, meant_for
from data_engine.questions.sources.column_types import CONVERSATIONS, IMAGE_FIELDS, MESSAGE_FIELDS
from data_engine.questions.sources.text_file import Record, TextFile, too_long

ROWS_ARE = "write each row as one line, or all of them as one array"
_PIECE_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_SPACE = re.compile(rb"[ \t\r\n]*")
# So near to the end, json's complaint may be about a text that is only cut off: in \uXXXX, or in a number.
_CUT_OFF = 10
# Made once and not once a row.
_PLAIN_DECODER = json.JSONDecoder()
# Which keys are read of the objects in a column.
_READ_INSIDE = {"image": IMAGE_FIELDS, "images": IMAGE_FIELDS, "messages": MESSAGE_FIELDS}


class Repeating(dict):
    """A JSON object that has keys more than once."""

    repeated: frozenset[str]


class JsonRows:
    """The objects of a file."""

    def __init__(self, file: TextFile, names: ColumnNames):
        self._file, self._names = file, names
        # Asked for each cell of each row.
        self._ours = functools.lru_cache(names.ours)
        self._inside = [(name, names.in_dataset(name), keys) for name, keys in _READ_INSIDE.items()]

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        """The rows, in order. Raises UserError, with the place, at what is none."""
        scanner = _Scanner(self._file, stream)
        if scanner.next_byte("", end=True) == b"[":
            scanner.position += 1
            return self._elements(scanner)
        stream.seek(0)
        return self._lines(stream)

    def parse(self, where: str, data: bytes) -> dict:
        """One row, by the engine's names. Raises UserError where it is no object, or has a key twice that is read."""
        place = f'"{self._file.path}", {where}'
        try:
            row = DECODER.decode(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: {_why_not(data, error)}") from None
        refuse(not isinstance(row, dict), f'{place}: not an object {{"idx": ..., ...}}')
        twice = self._repeated(row)
        refuse(bool(twice), f"{place}: {', '.join(twice)} is there more than once; keep one")
        return {name: value for key, value in row.items() for name in self._ours(key)}

    def _repeated(self, row: dict) -> list[str]:
        """The keys that are read and that a row has more than once, in words."""
        twice = []
        if isinstance(row, Repeating):
            ours = [name for key in sorted(row.repeated) for name in self._ours(key)]
            twice = [f'"{name}"' for name in map(self._names.in_dataset, self._names.are_read(ours))]
        for name, theirs, keys in self._inside:
            cell = row.get(theirs)
            for item in cell if isinstance(cell, list) else (cell,):
                if isinstance(item, Repeating):
                    what = "the image" if name == "image" else f"an item of {name}"
                    twice += [f'"{key}" of {what}' for key in keys if key in item.repeated]
        return list(dict.fromkeys(twice))

    def _lines(self, stream: BinaryIO) -> Iterator[Record]:
        start = 0
        for number, line in enumerate(iter(lambda: stream.readline(text_file.MAX_RECORD_BYTES + 1), b""), start=1):
            where = f"line {number}"
            if len(line) > text_file.MAX_RECORD_BYTES:
                one = f"; if the file is one object with the rows in it, {ROWS_ARE}, as docs/datasets.md shows"
                raise too_long(self._file, where, one if number == 1 else "")
            if line.strip():
                yield Record(where, start, len(line), self.parse(where, line))
            start += len(line)

    def _elements(self, scanner: "_Scanner") -> Iterator[Record]:
        """The objects of an array, the "[" of which was taken."""
        where = "item 1 of the array"
        byte = scanner.next_byte(where)
        while byte != b"]":
            refuse(byte != b"{", f'"{self._file.path}", {where}: not an object {{"idx": ..., ...}}')
            start, data = scanner.take_object(where)
            yield Record(where, start, len(data), self.parse(where, data))
            where = f"behind byte {start + len(data)}"
            byte = scanner.next_byte(where)
            if byte == b",":
                scanner.position += 1
                byte = scanner.next_byte(where)
                refuse(byte == b"]", f'"{self._file.path}", {where}: not JSON: a comma before the end of the array')
            else:
                refuse(byte != b"]", f'"{self._file.path}", {where}: not JSON: expected "," or the end of the array')
        scanner.position += 1
        refuse(scanner.next_byte("", end=True) != b"", f'"{self._file.path}" goes on behind the end of its array')


def told_of_rows_inside(path: Path, row: dict) -> str | None:
    """What is said of a file of one object that looks like a whole dataset; None where it does not.

    One that has an id or a question is a row, as is the only one of a file with a list of pictures or boxes.
    """
    plain = [name for name, value in row.items() if isinstance(value, str | int | float)]
    if any(meant_for(ours, plain) for ours in ("idx", "question")):
        return None
    inside = rows = None
    if row and all(isinstance(value, dict) for value in row.values()):
        inside, rows = f"with {len(row)} others by their keys", '[{"idx": key} | row for key, row in found.items()]'
    for name, value in row.items():
        if name in CONVERSATIONS or inside is not None:
            continue
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            inside, rows = f'with a list of {len(value)} others in "{name}"', f"found[{json.dumps(name)}]"
    if inside is None:
        return None
    told = f'"{path}" is one object, {inside}; {ROWS_ARE}'
    # What is packed has to be unpacked first.
    if path.suffix.lower() == ".gz":
        return told
    code = f'import sys, json; found = json.load(open(sys.argv[1])); json.dump({rows}, open(sys.argv[2], "w"))'
    return f"{told}: {python_command(code, path, f'{path.stem}-rows.json')}"


def _why_not(data: bytes, error: Exception) -> str:
    """Why bytes are no JSON, and what to do where that is known."""
    if data.startswith(_GZIP):
        return "not JSON, but packed with gzip: let the name of the file end with .gz"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason}; save the file as UTF-8"
    told = f"not JSON: {error}"
    # In a file that is written with indents, a line is a part of an object.
    if isinstance(error, json.JSONDecodeError) and data.lstrip()[:1] == b"{" and not error.doc[error.pos :].strip():
        told += f"; the object has no end in its line: {ROWS_ARE}"
    return told


def _object(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    row, seen = Repeating(row), set()
    row.repeated = frozenset(key for key, _ in pairs if key in seen or seen.add(key))
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""of objects that are Repeating where they have a key more than once"""


class _Scanner:
    """Finds where objects end, in a stream of which a few pieces are held."""

    def __init__(self, file: TextFile, stream: BinaryIO):
        self.position = 0
        self._file, self._stream = file, stream
        # The file's bytes from `_before` on, and the same as characters: json wants text, and in latin-1 each byte is
        # one. What has a meaning in JSON is ASCII, so that objects end at the same places.
        self._before, self._data, self._text = 0, b"", ""
        self._more(_PIECE_BYTES)
        if self._data.startswith(_BYTE_ORDER_MARK):
            self.position = len(_BYTE_ORDER_MARK)

    def next_byte(self, where: str, end: bool = False) -> bytes:
        """The next byte that is no space, at `position`; empty at the end of the file, where `end` allows it."""
        while True:
            self.position = _SPACE.match(self._data, self.position).end()
            if self.position < len(self._data):
                return self._data[self.position : self.position + 1]
            if not self._more(_PIECE_BYTES):
                refuse(not end, f'"{self._file.path}", {where}: cut off; the array has no end')
                return b""

    def take_object(self, where: str) -> tuple[int, bytes]:
        """(place in the file, bytes) of the object that begins at `position`."""
        while True:
            try:
                _, end = _PLAIN_DECODER.raw_decode(self._text, self.position)
                break
            except (ValueError, RecursionError) as error:
                held = len(self._text) - self.position
                if held > text_file.MAX_RECORD_BYTES:
                    raise too_long(self._file, where) from None
                if not self._is_cut_off(error) or not self._more(max(_PIECE_BYTES, held)):
                    raise UserError(f'"{self._file.path}", {where}: not JSON: {error}') from None
        if end - self.position > text_file.MAX_RECORD_BYTES:
            raise too_long(self._file, where)
        start, self.position = self.position, end
        return self._before + start, self._data[start:end]

    def _is_cut_off(self, error: Exception) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT_OFF

    def _more(self, num_bytes: int) -> bool:
        """Read on, and forget what was taken; False at the end of the file."""
        piece = self._stream.read(num_bytes)
        self._before += self.position
        self._data = self._data[self.position :] + piece
        self._text, self.position = self._data.decode("latin-1"), 0
        return bool(piece)
