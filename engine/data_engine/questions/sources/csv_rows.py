"""CSV as rows: a header with the names of the columns, then records, in which quoted text may go over several lines.

Cells are separated by a comma, a semicolon (as of Excel where numbers have commas), a tab or a bar: the header tells.
"""

import contextlib
import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from data_engine.errors import UserError
from data_engine.plural import plural
from data_engine.questions.sources import text_file
from data_engine.questions.sources.base import refuse
from data_engine.questions.sources.column_names import ColumnNames
from data_engine.questions.sources.text_file import Record, TextFile, too_long

_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": '"|"'}
_QUOTED = 'stands in quotes, and a quote in it is doubled: "say ""yes"", please"'


class CsvRows:
    """The records of a file; every cell is text."""

    def __init__(self, file: TextFile, names: ColumnNames):
        self._file, self._names = file, names
        # The names of each column: none for one that is not read.
        self._header: list[list[str]] = []
        self._separator, self._with_space = ",", False

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        """The rows, in order. Raises UserError, with the line, at what is none."""
        self._find_separator(next((line for line in _Lines(self._file, stream) if line.strip()), ""))
        stream.seek(0)
        lines = _Lines(self._file, stream)
        reader = self._reader(lines)
        while True:
            start, lines.record_bytes, where = lines.position, 0, f"line {lines.number + 1}"
            fields = self._next(reader, where)
            if fields is None:
                return
            if not fields:
                continue
            if self._header:
                yield Record(where, start, lines.position - start, self._row(where, fields))
                continue
            # By pandas' name: its own files have their index there, which --columns can then name.
            named = [name or f"Unnamed: {number}" for number, name in enumerate(fields)]
            self._header = list(map(self._names.ours, named))
            counts = Counter(itertools.chain(*self._header))
            read = self._names.are_read(counts)
            twice = {f'"{self._names.in_dataset(name)}"': None for name in read if counts[name] > 1}
            refuse(bool(twice), f'"{self._file.path}" has more than one column {", ".join(twice)}; keep one')

    def parse(self, where: str, data: bytes) -> dict:
        """One row, from the bytes of its record."""
        record = self._next(self._reader(_Lines(self._file, io.BytesIO(data))), where)
        return self._row(where, record or [])

    def _find_separator(self, header: str) -> None:
        """The first mark that parts the line of names; and whether each has a space behind it, which is in no cell."""
        is_tsv = self._file.path.name.lower().removesuffix(".gz").endswith(".tsv")
        for mark in "\t,;|" if is_tsv else _SEPARATORS:
            # By another mark, quotes may stand where none can.
            with contextlib.suppress(csv.Error):
                names = next(csv.reader([header], delimiter=mark, strict=True), [])
                if len(names) > 1:
                    self._separator, self._with_space = mark, all(name.startswith(" ") for name in names[1:])
                    return

    def _reader(self, lines: "_Lines") -> Iterator[list[str]]:
        # The module's own limit is less than a question may have; there is one for the whole process.
        csv.field_size_limit(text_file.MAX_RECORD_BYTES)
        return csv.reader(lines, delimiter=self._separator, skipinitialspace=self._with_space, strict=True)

    def _row(self, where: str, fields: list[str]) -> dict:
        found = f"{plural(len(fields), 'cell')}, but {plural(len(self._header), 'column')}"
        refuse(
            len(fields) != len(self._header),
            f'"{self._file.path}", {where}: {found}; a text with {_SEPARATORS[self._separator]} {_QUOTED}',
        )
        return {name: cell for names, cell in zip(self._header, fields, strict=True) for name in names}

    def _next(self, reader: Iterator[list[str]], where: str) -> list[str] | None:
        """The next record: empty for an empty line, None at the end."""
        try:
            return next(reader, None)
        except csv.Error as error:
            told = error
            if "expected after" in str(error):
                told = f"{error}; a text that begins with a quote {_QUOTED}"
            if "new-line" in str(error):
                of_cell = "a CR stands in a text without quotes; put the text in quotes, or take the CR out"
                told = "lines end with CR alone; save the file with LF or CRLF" if where == "line 1" else of_cell
            raise UserError(f'"{self._file.path}", {where}: not CSV: {told}') from None


class _Lines:
    """The lines of a file as text, and how far they were taken."""

    def __init__(self, file: TextFile, stream: BinaryIO):
        self.position = self.number = self.record_bytes = 0
        self._file, self._stream = file, stream

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(text_file.MAX_RECORD_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.record_bytes += len(line)
        if self.record_bytes > text_file.MAX_RECORD_BYTES:
            raise too_long(self._file, f"line {self.number}, or a quote before it that is never closed")
        coding = "utf-8-sig" if self.position == 0 else "utf-8"
        self.position += len(line)
        try:
            return line.decode(coding)
        except UnicodeDecodeError as error:
            raise UserError(
                f'"{self._file.path}", line {self.number}: not UTF-8: {error.reason}; save the file as UTF-8'
            ) from None
