"""A process that a rank starts for what may crash, hang or exhaust memory, and the socket over which it is asked.

`Isolated` is the rank's end. The module that runs in the process serves the stream of `served`.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import BinaryIO

from data_engine.processes import job_signals

# A process whose socket is closed has so long to end.
END_S = 5
# What is said of one that another process has killed.
KILLED = "was killed, most often for want of memory"


def command(module: str) -> list[str]:
    """What starts a module. -P: a file in the current folder must not shadow a module of Python."""
    return [sys.executable, "-P", "-m", module]


class Isolated:
    """The process and the rank's end of its socket."""

    def __init__(self, command: list[str], stderr: int | None = None) -> None:
        """Starts it with the descriptor of its end and the rank's process id as last words."""
        ours, theirs = socket.socketpair()
        # In a session of its own it does not get Ctrl-C from the terminal.
        with contextlib.ExitStack() as closed, theirs, job_signals.held():
            closed.enter_context(ours)
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=stderr, start_new_session=True,
            )  # fmt: skip
            # Where the process cannot be started, nothing keeps the socket.
            closed.pop_all()
        self.socket = ours
        self.stream = ours.makefile("rwb")

    def end(self) -> int:
        """Kill the process, and those that it has started. Returns its exit code, negative for a signal.

        One that has closed its socket by ending has its exit code already.
        """
        # The id of one whose exit code was read may be another's by now.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        # Closing flushes, which fails where the process is gone.
        with contextlib.suppress(OSError):
            self.stream.close()
        self.socket.close()
        return self.process.wait()

    def ended(self) -> int | None:
        """Clean up where the socket has closed. The exit code, as `end` returns it; None for a process that went on and
        was killed here.

        -SIGKILL is what the machine did, as where memory is short, and no fault of what ran there.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        went_on = self.process.returncode is None
        code = self.end()
        return None if went_on else code


@contextlib.contextmanager
def served() -> Iterator[BinaryIO]:
    """The stream of the process that Isolated has started; inside, the end of the rank ends the loop."""
    # Closing the stream flushes, which fails where the rank died before it read the last response.
    with contextlib.suppress(OSError, EOFError), socket.socket(fileno=int(sys.argv[1])).makefile("rwb") as stream:
        yield stream


def read(stream: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes. Raises EOFError where the other end closes before."""
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def limit_memory(size_bytes: int) -> None:
    """RLIMIT_DATA counts the memory that this process may write to, not reserved address space."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
