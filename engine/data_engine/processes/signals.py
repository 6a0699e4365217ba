"""Signals: a rank stops after the unit that it computes, or when its grace time is over."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from data_engine.processes.exit_report import STOPPED, report

# A signal repeated within this time counts once: launchers forward signals that the rank got itself.
SAME_SIGNAL_S = 2.0
# Stopped is raised again after so long if the work still goes on.
AGAIN_S = 5.0


class Stopped(BaseException):
    """Raised when the grace time after a signal is over: the unit that is computed is dropped."""


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt what runs inside as Ctrl-C does, so that nothing half-written is left.

    One that the process was started to ignore, as by nohup, stays ignored.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number] or signal.SIG_DFL)


class Stop:
    """Whether a signal asked this rank to stop. A second signal exits at once.

    SIGTERM, SIGINT and SIGUSR1 set `wanted` to their name. After `grace_s` seconds Stopped is raised in the main
    thread. With `polled` it is not: the main thread then asks `overdue` between calls that must not be interrupted.
    """

    def __init__(self, grace_s: float) -> None:
        self.wanted: str | None = None
        self.polled = False
        self._grace_s, self._since = grace_s, 0.0
        self._committing = False

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
        if not (self.polled or self._committing):
            raise Stopped

    def overdue(self) -> bool:
        """Whether the grace time after a signal is over."""
        return self.wanted is not None and time.monotonic() - self._since > self._grace_s

    def _arm(self) -> None:
        left = max(1e-3, self._since + self._grace_s - time.monotonic())
        # Repeated, since an exception that is raised inside a destructor is lost.
        signal.setitimer(signal.ITIMER_REAL, left, AGAIN_S)

    def disarm(self) -> None:
        """Call when the work has ended: no Stopped is raised after this call, but one may be raised in it."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """No Stopped is raised inside: a unit is published whole or not at all."""
        # A flag and not the timer alone: a signal that comes inside sets the timer.
        self._committing = True
        try:
            yield
        finally:
            self._committing = False
            if self.wanted:
                self._arm()
