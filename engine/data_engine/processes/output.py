"""Standard output and error that never fail: whatever the locale, and whoever has stopped reading."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterable
from typing import TextIO

from data_engine.errors import UserError


class _Stream:
    """A text stream that is silent once nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._silent = stream, False
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        if not self._silent:
            with self._silent_when_closed():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if not self._silent:
            with self._silent_when_closed():
                self._stream.flush()

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    @contextlib.contextmanager
    def _silent_when_closed(self):
        try:
            yield
        except (OSError, ValueError) as error:
            self._silent = True
            self.failure = error if isinstance(error, OSError) else None
            # What is left in the buffer must not fail when the interpreter flushes it at its end.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def is_silent(stream: TextIO) -> bool:
    """Whether nobody reads a protected stream any more, as a write to it has shown."""
    return isinstance(stream, _Stream) and stream._silent


def why_lost(stream: TextIO) -> str | None:
    """Why what was written to a protected stream is lost, as on a full disk; None where it is not."""
    stream.flush()
    failure = stream.failure if isinstance(stream, _Stream) else None
    # Whoever closes a pipe has read enough.
    return failure.strerror if failure and failure.errno not in (errno.EPIPE, errno.EBADF) else None


def open_missing() -> None:
    """Open /dev/null for standard streams that are closed: a data file would get the number, and what C code prints."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one.
            os.open(os.devnull, os.O_RDWR)


def use_utf8() -> None:
    """Start this command again in Python's UTF-8 mode where names of files are not UTF-8, as Arrow takes them to be."""
    if sys.getfilesystemencoding() != "utf-8":
        if sys.stdout:
            # Messages keep the encoding of the terminal.
            os.putenv("PYTHONIOENCODING", sys.stdout.encoding)
        # For the processes that this one starts: they get the same names.
        os.putenv("PYTHONUTF8", "1")
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def protect() -> None:
    """From now on no print or log line of this process raises: what a locale cannot show is written as \\u escapes."""
    open_missing()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Closed by whoever started this process: Python has None there, and libraries write to it all the same.
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
            continue
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Stream(stream))


def tell(error: UserError) -> None:
    """Print a mistake, unless that has been done."""
    if not error.told:
        complain(str(error))
        error.told = True


def warn(warnings: Iterable[str]) -> None:
    """Print what a person should know before going on."""
    for warning in warnings:
        print(f"data-engine: warning: {warning}", file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Print why a command ends, or will end."""
    print(f"data-engine: error: {message}", file=sys.stderr, flush=True)
