"""The signals of a job, for processes that a rank starts: a terminal and SLURM send them to every process of the job.

The rank alone decides what follows, and ends its own processes.
"""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

JOB_SIGNALS = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Block these signals inside: this thread gets them at the end.

    Processes that it starts inherit the block until they call `ignore`: a signal that reached one before it has a
    handler would end it.
    """
    # multiprocessing starts this process of its own with the first one that it starts, or the first lock, and some
    # versions of Python let SIGINT and SIGTERM through from then on.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """For a process that was started inside `held`."""
    for number in JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_SIGNALS)
