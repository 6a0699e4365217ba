"""A text file as bytes, unpacked where it is packed with gzip, of which parts are read on demand."""

import contextlib
import gzip
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_engine.errors import UserError, first_line

# The longest question fits, even with each byte of it written as \u00xx.
MAX_RECORD_BYTES = 16 << 20


@dataclass(frozen=True)
class Record:
    """One row of the file: where it stands, in words and in unpacked bytes, and its cells by column."""

    where: str
    start: int
    size: int
    row: dict


class TextFile:
    """A file, or what is packed in it: the same bytes at the same places.

    Its streams raise UserError, with the file's name, for whatever opening and reading raise.
    """

    def __init__(self, path: Path):
        self.path = path
        self._packed = path.suffix.lower() == ".gz"
        self._resume: BinaryIO | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The bytes, from the first on."""
        with self._reading(), self._open() as stream:
            yield stream

    @contextlib.contextmanager
    def reopened(self) -> Iterator[BinaryIO]:
        """The bytes, wherever the last reader left them.

        What is packed can only be unpacked from its start on. Units mostly come in rising order, so that the stream
        that was read last goes on, and a file is unpacked once, not once a unit.
        """
        if not self._packed:
            with self.opened() as stream:
                yield stream
            return
        stream, self._resume = self._resume, None
        with self._reading():
            if stream is None:
                stream = self._open()
                weakref.finalize(self, stream.close)
            try:
                yield stream
            except GeneratorExit:
                # The reader was given up before its last row.
                self._resume = stream
                raise
            self._resume = stream

    def _open(self) -> BinaryIO:
        return gzip.open(self.path) if self._packed else open(self.path, "rb")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f'dataset file "{self.path}" is cut off, broken or cannot be read: {first_line(error)}'
            ) from None


def too_long(file: TextFile, where: str, hint: str = "") -> UserError:
    """What is said of a row that exceeds the memory set aside for one."""
    larger = "a larger image is given by its path, under --image_root"
    return UserError(f'"{file.path}", {where}: more than {MAX_RECORD_BYTES} bytes; {larger}{hint}')
