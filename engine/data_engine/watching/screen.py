"""Watching on a terminal: a screen of its own that is drawn anew where it has changed, and left as it was found."""

import contextlib
import io
import locale
import os
import queue
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator

from rich.console import Console
from rich.segment import Segments

from data_engine.processes import output
from data_engine.watching.frame import Line, Paper, frame
from data_engine.watching.lines import Look
from data_engine.watching.progress import Progress

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[2J", "\x1b[?25h\x1b[?1049l"
_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGTSTP)
# A look that takes longer is told of.
_SLOW_S = 10.0
# Most lines of the last table, which stays on the terminal.
_LAST_HEIGHT = 40
_LOOKED = 0


def watch_screen(look: Look, every_s: float) -> int:
    """Show the progress on a screen of its own until all is done, or q or Ctrl-C is pressed; 0 then.

    The last table stays on the terminal. Raises what a look raises. A signal that asks the process to end is obeyed
    when the terminal is as it was.
    """
    with _wakeups() as wakeup:
        ended_by = Watch(look, every_s, *wakeup).run()
    if ended_by in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    return 0


@contextlib.contextmanager
def _wakeups() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, through which the numbers of signals come instead of what they would do."""
    ours, theirs = os.pipe()
    for end in (ours, theirs):
        os.set_blocking(end, False)
    before = {number: signal.getsignal(number) for number in _WATCHED}
    # What the starter of the process had it ignore stays ignored, as by nohup.
    heard = [number for number in _WATCHED if before[number] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, lambda *_: None)
    fd_before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    try:
        yield ours, theirs
    finally:
        signal.set_wakeup_fd(fd_before)
        for number in heard:
            signal.signal(number, before[number] or signal.SIG_DFL)


class Watch:
    """One watching of a run; looks are made by a thread, so that a slow file system keeps no key or resize waiting."""

    def __init__(self, look: Look, every_s: float, wakeup: int, wake: int) -> None:
        self._look, self._every_s, self._wakeup, self._wake = look, every_s, wakeup, wake
        self._found: queue.SimpleQueue[Progress | BaseException] = queue.SimpleQueue()
        self._asked_at: float | None = None
        self._progress: Progress | None = None
        self._screen = Screen()

    def run(self) -> int | None:
        """The number of the signal that ended it; None where the run is done or q was pressed."""
        try:
            with self._screen:
                return self._run()
        finally:
            if self._progress:
                self._screen.print_last(self._progress)

    def _run(self) -> int | None:
        next_look = time.monotonic()
        while True:
            now = time.monotonic()
            if self._asked_at is None and now >= next_look:
                self._ask(now)
                next_look = now + self._every_s
            self._draw(now)
            until = min(next_look - now if self._asked_at is None else _SLOW_S, 3600.0)
            for number in self._wait(until):
                if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    return number
                if number == signal.SIGTSTP:
                    self._screen.pause()
                elif number == signal.SIGWINCH:
                    self._screen.forget()
                elif number == _LOOKED:
                    self._take()
            if self._screen.is_left_by_key or output.is_silent(sys.stdout):
                return None
            if self._progress and self._progress.is_done:
                return None

    def _ask(self, now: float) -> None:
        self._asked_at = now
        threading.Thread(target=self._look_now, daemon=True).start()

    def _look_now(self) -> None:
        try:
            self._found.put(self._look())
        except BaseException as error:
            self._found.put(error)
        # The pipe is gone where the watching has ended meanwhile.
        with contextlib.suppress(OSError):
            os.write(self._wake, bytes([_LOOKED]))

    def _take(self) -> None:
        with contextlib.suppress(queue.Empty):
            found = self._found.get_nowait()
            self._asked_at = None
            if isinstance(found, BaseException):
                raise found
            self._progress = found

    def _wait(self, seconds: float) -> bytes:
        """Numbers of signals that came within so many seconds, at the latest when a key was pressed."""
        ready = self._screen.wait(self._wakeup, max(0.0, seconds))
        with contextlib.suppress(BlockingIOError):
            return os.read(self._wakeup, 4096) if ready else b""
        return b""

    def _draw(self, now: float) -> None:
        waited = now - self._asked_at if self._asked_at is not None else 0.0
        note = f"the file system has not answered for {waited:.0f} s" if waited >= _SLOW_S else ""
        self._screen.draw(self._progress, f"q or Ctrl-C leaves; a look every {self._every_s:g} s", note)


class Screen:
    """The terminal while it is watched: entered and left as a context, drawn line by line where lines have changed."""

    def __init__(self) -> None:
        self._out = sys.stdout
        self._console = Console(file=self._out, force_terminal=True, highlight=False, markup=False, emoji=False)
        # In Python's UTF-8 mode the stream says nothing of what the terminal shows; the locale does.
        shows_utf8 = all(name.lower().startswith("utf") for name in (self._out.encoding, locale.getencoding()))
        self._encoding = "utf-8" if shows_utf8 else "ascii"
        self._drawn: list[str] = []
        self._size: tuple[int, int] | None = None
        self._keys = sys.stdin.fileno() if _reads_keys() else None
        self._modes = termios.tcgetattr(self._keys) if self._keys is not None else None
        self.is_left_by_key = False

    def __enter__(self) -> "Screen":
        if self._keys is not None:
            # Keys come at once and unseen; Ctrl-C and Ctrl-Z remain signals.
            tty.setcbreak(self._keys, termios.TCSANOW)
        self._write(_ENTER)
        self.forget()
        return self

    def __exit__(self, *_: object) -> None:
        self._write(_LEAVE)
        if self._modes is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSANOW, self._modes)

    def pause(self) -> None:
        """Leave the screen, stop as Ctrl-Z asks, and come back when the shell lets the process go on."""
        self.__exit__()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.__enter__()

    def forget(self) -> None:
        """Draw every line the next time."""
        self._drawn, self._size = [], None

    def wait(self, wakeup: int, seconds: float) -> bool:
        """Wait for a key or the wakeup; True for the latter."""
        inputs = [wakeup] if self._keys is None else [wakeup, self._keys]
        ready, _, _ = select.select(inputs, [], [], seconds)
        if self._keys in ready:
            self._read_keys()
        return wakeup in ready

    def _read_keys(self) -> None:
        try:
            pressed = os.read(self._keys, 1024)
        except OSError:
            pressed = b""
        if not pressed:
            self._keys = None
        self.is_left_by_key |= b"q" in pressed.lower()

    def draw(self, progress: Progress | None, hint: str, note: str) -> None:
        """Draw what has changed, in one write."""
        width, height = size = _size(self._out)
        paper = Paper(width, self._encoding)
        lines = [] if progress is None else self._as_text(frame(progress, self._console, paper, height, hint, note))
        if progress is None:
            lines = [(note or "reading ...")[:width]]
        lines += [" " * width] * (height - len(lines))
        fresh = size != self._size
        changed = [(at, line) for at, line in enumerate(lines) if fresh or line != self._drawn[at]]
        if changed:
            moves = "".join(f"\x1b[{at + 1};1H{line}" for at, line in changed)
            self._write(("\x1b[0m\x1b[2J" if fresh else "") + moves)
        self._drawn, self._size = lines, size

    def print_last(self, progress: Progress) -> None:
        """Print the table where the terminal goes on, without what belongs to a screen."""
        width, height = _size(self._out)
        # A line is left for the prompt, so that the first line of the table stays in sight.
        lines = self._as_text(
            frame(progress, self._console, Paper(width, self._encoding), min(_LAST_HEIGHT, height - 1))
        )
        self._write("".join(f"{line.rstrip()}\n" for line in lines))

    def _as_text(self, lines: list[Line]) -> list[str]:
        found = []
        for line in lines:
            with self._console.capture() as captured:
                self._console.print(Segments(line), end="", soft_wrap=True)
            found.append(captured.get())
        return found

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._out.write(text)
            self._out.flush()


def _reads_keys() -> bool:
    """Whether standard input is the terminal, and this process may change it: in the background that would stop it."""
    try:
        number = sys.stdin.fileno()
        return os.isatty(number) and os.tcgetpgrp(number) == os.getpgrp()
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        return False


def _size(stream) -> tuple[int, int]:
    """Columns and lines, as the terminal has them now."""
    with contextlib.suppress(OSError, ValueError):
        columns, lines = os.get_terminal_size(stream.fileno())
        # Some terminals say 0 when they do not know.
        return columns or 80, lines or 24
    return 80, 24
