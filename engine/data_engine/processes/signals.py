"""What a signal asks of a rank: to stop after what it holds, and at once when its grace time is over."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from data_engine.processes.exit_report import STOPPED, report

# A launcher may pass on a signal that this rank got already; the same wish again within this time is no second one.
SAME_SIGNAL_S = 2.0
# Stopped is raised once more after so long, as long as the work goes on all the same.
AGAIN_S = 5.0


class Stopped(BaseException):
    """The grace time after a signal is over: drop the unit in hand."""


class Stop:
    """Whether a signal asked this rank to stop. A second one exits at once.

    SIGTERM, SIGINT and SIGUSR1 set `wanted`; after `grace_s` seconds Stopped is raised in the main thread, unless
    `polled` is set: then it is for the main thread to ask `overdue`, between calls that it must not break off.
    """

    def __init__(self, grace_s: float) -> None:
        self.wanted: str | None = None
        self.polled = False
        self._grace_s, self._since = grace_s, 0.0

    def listen(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.wanted is None:
            self.wanted, self._since = signal.Signals(number).name, time.monotonic()
            self._arm()
        elif time.monotonic() - self._since > SAME_SIGNAL_S:
            report(code=STOPPED)
            os._exit(STOPPED)

    def _on_alarm(self, _number: int, _frame: object) -> None:
        if not self.polled:
            raise Stopped

    def overdue(self) -> bool:
        """Whether the grace time after a signal is over."""
        return self.wanted is not None and time.monotonic() - self._since > self._grace_s

    def _arm(self) -> None:
        left = max(1e-3, self._since + self._grace_s - time.monotonic())
        # Again and again, since an exception that comes up in a destructor is lost.
        signal.setitimer(signal.ITIMER_REAL, left, AGAIN_S)

    def disarm(self) -> None:
        """No Stopped from here on: the work has ended anyhow. A last one may still come out of this call."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """No Stopped inside: what is being published is published whole."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            yield
        finally:
            if self.wanted:
                self._arm()
