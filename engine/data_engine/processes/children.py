"""The processes that a loop starts, one at a time, and the signals that it passes to them."""

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from data_engine.errors import UserError
from data_engine.processes.signals import STOPS, handle

POLL_S = 0.1
# A signal repeated within this time counts once: SLURM signals all processes of a job.
SAME_SIGNAL_S = 2.0
# Copied at once of what a child says.
MOST_BYTES = 2**20
LOCK = ".loop.lock"


log = logging.getLogger(__name__)


class LoopStopped(Exception):
    """A signal came to a loop; what ends a rank is signals.Stopped."""


class Children:
    """Starts processes and waits for them; inside the `with`, signals go to the one that runs."""

    def __init__(self, loop: Path) -> None:
        self._lock_file, self._lock = loop / LOCK, -1
        self._received: list[int] = []
        self._last = 0.0

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Raises UserError where another loop works in the folder, or what it started still does."""
        self._lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take()
            restore = handle(self._note, *STOPS)
            try:
                yield
            finally:
                restore()
        finally:
            os.close(self._lock)

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._lock, 20, 0).decode() or "unknown"
            raise UserError(
                f'work_dir "{self._lock_file.parent}": another data-engine loop works there, or what it started still '
                f"does (process {pid}): wait for it, or stop it"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): start no second loop there", self._lock_file.parent, error.strerror)
            return
        self._sign(os.getpid())

    def _sign(self, pid: int) -> None:
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(pid).encode(), 0)

    def _note(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if not self._received or now - self._last > SAME_SIGNAL_S or number == signal.SIGINT:
            self._received.append(number)
            self._last = now

    def run(self, words: Sequence[str], log: Path | None = None, **environment: str) -> int:
        """The exit code of a process, negative for the signal that ended it; what it says goes to `log` and to here.

        Raises LoopStopped where a signal came, once the process has ended, whatever its code: a trainer that was
        stopped may end with 0. Raises UserError where it cannot be started. `environment` is for what the loop's own
        does not have.
        """
        if self._received:
            raise LoopStopped
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(log.open("ab")) if log is not None else None
            said = stack.enter_context(log.open("rb")) if log is not None else None
            if said is not None:
                said.seek(0, os.SEEK_END)
            # In a session of its own, so that Ctrl-C reaches it from here alone. It keeps the lock while it lives.
            try:
                child = subprocess.Popen(
                    words, env={**environment, **os.environ}, start_new_session=True, pass_fds=[self._lock],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output and subprocess.STDOUT,
                )  # fmt: skip
            except OSError as error:
                raise UserError(f'"{words[0]}" cannot be started: {error.strerror}') from None
            self._sign(child.pid)
            told = 0
            while child.poll() is None:
                if len(self._received) > told:
                    self._pass_on(child, group=log is not None, again=told > 0)
                    told = len(self._received)
                time.sleep(POLL_S)
                _copy(said)
            while _copy(said):
                pass
        self._sign(os.getpid())
        if self._received:
            raise LoopStopped
        return child.returncode

    def _pass_on(self, child: subprocess.Popen, group: bool, again: bool) -> None:
        """Send the signal to the launcher of ranks, which passes it on, or to the whole process group of a trainer. A
        second one kills that group.
        """
        number = self._received[-1]
        with contextlib.suppress(ProcessLookupError):
            if not group:
                child.send_signal(number)
            else:
                polite = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
                os.killpg(child.pid, signal.SIGKILL if again else polite)


def _copy(said: BinaryIO | None) -> bool:
    """Copy a part of what a child has written, and tell whether there was any.

    A part, so that a child that writes much neither fills memory nor holds up signals.
    """
    new = said.read(MOST_BYTES) if said is not None else b""
    if new:
        sys.stdout.write(new.decode(errors="replace"))
        sys.stdout.flush()
    return bool(new)
