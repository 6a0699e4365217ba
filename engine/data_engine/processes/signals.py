"""Signals: a rank stops after the unit that it computes, or when its grace time is over."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

from data_engine.exit_codes import STOPPED
from data_engine.processes.exit_report import report

# A signal repeated within this time counts once: launchers forward signals that the rank got itself.
SAME_SIGNAL_S = 2.0
# Stopped is raised again after so long if the work still goes on.
AGAIN_S = 5.0
# And after so long where Python dropped it, or a commit put it off.
SOON_S = 0.01


class Stopped(BaseException):
    """Raised when the grace time after a signal is over: the unit that is computed is dropped."""


class Interrupted(KeyboardInterrupt):
    """What a signal raises in a command. KeyboardInterrupt itself, in a text that is executed, as dataclasses do it,
    would have Python end a module by SIGINT, whatever exit code follows.
    """


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C interrupt what runs inside, so that nothing half-written is left.

    One that the process was started to ignore, as by nohup, stays ignored.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, _interrupt)
    let_go = _raised_again(KeyboardInterrupt)
    try:
        yield
    finally:
        let_go()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in heard:
            signal.signal(number, before[number] or signal.SIG_DFL)


def _interrupt(_number: int, _frame: object) -> None:
    raise Interrupted


def _raised_again(kind: type[BaseException], again_s: float = 0) -> Callable[[], None]:
    """Have SIGALRM come again, and then every `again_s` seconds, where Python drops an exception of that kind.

    What a handler raises while a destructor runs, Python prints with a traceback and forgets. Returns what ends it.
    """
    others = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if issubclass(dropped.exc_type, kind):
            signal.setitimer(signal.ITIMER_REAL, SOON_S, again_s)
        else:
            others(dropped)

    def end() -> None:
        if sys.unraisablehook is hook:
            sys.unraisablehook = others

    sys.unraisablehook = hook
    return end


class Stop:
    """Whether a signal asked this rank to stop. A second signal exits at once.

    SIGTERM, SIGINT, SIGUSR1 and SIGHUP set `wanted` to their name; a SIGHUP that the process was started to ignore, as
    by nohup, stays ignored. After `grace_s` seconds Stopped is raised in the main thread. With `polled` it is not: the
    main thread then asks `overdue` between calls that must not be interrupted.
    """

    def __init__(self, grace_s: float) -> None:
        self.wanted: str | None = None
        self.polled = False
        self._grace_s, self._since = grace_s, 0.0
        self._committing = False
        # Whether Stopped was raised, and whether it would have been inside a commit.
        self._raised = self._missed = False
        self._let_go: Callable[[], None] = lambda: None

    def listen(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_alarm)
        self._let_go = _raised_again(Stopped, AGAIN_S)
        return self

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.wanted is None:
            self.wanted, self._since = signal.Signals(number).name, time.monotonic()
            # Repeated, since what runs may hide the exception.
            signal.setitimer(signal.ITIMER_REAL, max(self._grace_s, SOON_S), AGAIN_S)
        elif time.monotonic() - self._since > SAME_SIGNAL_S:
            report(code=STOPPED)
            os._exit(STOPPED)

    def _on_alarm(self, _number: int, _frame: object) -> None:
        if self._committing:
            self._missed = True
        elif not self.polled:
            self._raised = True
            raise Stopped

    def overdue(self) -> bool:
        """Whether the grace time after a signal is over."""
        return self.wanted is not None and time.monotonic() - self._since > self._grace_s

    def disarm(self) -> None:
        """Call when the work has ended: no Stopped is raised after this call, but one may be raised in it."""
        self._let_go()
        signal.setitimer(signal.ITIMER_REAL, 0)

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """No Stopped is raised inside, but behind it: a unit is published whole or not at all."""
        # A flag and not the timer alone: a signal that comes inside sets the timer.
        self._committing = True
        try:
            yield
        finally:
            self._committing = False
            # A commit on the way out of Stopped has no second one follow: it would break off what ends processes.
            if self._missed and not self._raised:
                signal.setitimer(signal.ITIMER_REAL, SOON_S, AGAIN_S)
            self._missed = False
