"""Signals: a rank stops after the unit that it computes, or when its grace time is over."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

from data_engine.exit_codes import STOPPED
from data_engine.processes import output
from data_engine.processes.exit_report import report

# What asks a process to stop: the scheduler, the user, SLURM before a preemption, a terminal that is lost.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# A signal repeated within this time counts once: launchers forward signals that the rank got itself.
SAME_SIGNAL_S = 2.0
# Stopped is raised again after so long if the work still goes on.
AGAIN_S = 5.0
# And after so long where Python dropped it, or a commit put it off.
SOON_S = 0.01
INTERRUPTED = "interrupted; run the same command again to go on"


class Stopped(BaseException):
    """Raised when the grace time after a signal is over: the unit that is computed is dropped."""


class Interrupted(KeyboardInterrupt):
    """What a signal raises in a command. KeyboardInterrupt itself, in a text that is executed, as dataclasses do it,
    would have Python end a module by SIGINT, whatever exit code follows.
    """


def handle(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Callable[[], None]:
    """Have a handler for signals; one that is ignored, as by nohup, stays so. Returns what restores the handlers that
    there were.
    """
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number, earlier in before.items() if earlier is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, handler)

    def restore() -> None:
        for number in heard:
            signal.signal(number, before[number] or signal.SIG_DFL)

    return restore


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """The signals STOPS interrupt what runs inside, so that nothing half-written is left."""
    restore = interrupt_by_signals()
    try:
        yield
    finally:
        restore()


def interrupt_by_signals() -> Callable[[], None]:
    """From now on the signals STOPS raise Interrupted. Returns what restores their handlers."""
    restore_handlers = handle(_interrupt, *STOPS, signal.SIGALRM)
    let_go = _raised_again(KeyboardInterrupt)

    def restore() -> None:
        let_go()
        signal.setitimer(signal.ITIMER_REAL, 0)
        restore_handlers()

    return restore


def end_with(code: int) -> None:
    """For the end of a program, which torch makes long: a signal ends it at once, with the exit code that it has."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    handle(lambda *_: os._exit(code), *STOPS)


def ignore() -> None:
    """For what follows Python's own end, as destructors of C++ code: Python takes its handlers away before that."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _imports(frame):
        raise Interrupted
    # Put off, unless it has been before.
    if number != signal.SIGALRM and signal.getitimer(signal.ITIMER_REAL)[0]:
        _leave(number, frame)
    signal.setitimer(signal.ITIMER_REAL, SOON_S)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """For the import of torch, before there is anything to clean up: the signals STOPS end the process.

    Elsewhere they wait until a module is imported: see _imports.
    """
    restore = handle(_leave, *STOPS)
    try:
        yield
    finally:
        restore()


def _leave(_number: int, _frame: FrameType | None) -> None:
    if sys.stderr.isatty():
        # Of what takes seconds, a terminal's line says so.
        print(file=sys.stderr)
    output.complain(INTERRUPTED)
    os._exit(STOPPED)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported, which no exception may break off: torch's C++ code would call abort(), pandas
    would raise another one, and Python's lock for imports may stay locked, for which other threads wait forever.
    """
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


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

    The signals STOPS set `wanted` to their name; a SIGHUP that the process was started to ignore, as by nohup, stays
    ignored. After `grace_s` seconds Stopped is raised in the main thread. With `polled` it is not: the main thread then
    asks `overdue` between calls that must not be interrupted.
    """

    def __init__(self, grace_s: float) -> None:
        self.wanted: str | None = None
        self.polled = False
        self._grace_s, self._since = grace_s, 0.0
        self._committing = self._ended = False
        # Whether Stopped was raised, and whether it would have been inside a commit.
        self._raised = self._missed = False
        self._let_go: Callable[[], None] = lambda: None

    def listen(self) -> "Stop":
        for number in STOPS:
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

    def _on_alarm(self, _number: int, frame: FrameType | None) -> None:
        if self._committing:
            self._missed = True
        elif self.polled or self._ended:
            return
        elif _imports(frame):
            signal.setitimer(signal.ITIMER_REAL, SOON_S, AGAIN_S)
        else:
            self._raised = True
            raise Stopped

    def overdue(self) -> bool:
        """Whether the grace time after a signal is over."""
        return self.wanted is not None and time.monotonic() - self._since > self._grace_s

    def disarm(self) -> None:
        """Call when the work has ended: no Stopped is raised after this call, but one may be raised in it."""
        self._let_go()
        self._ended = True
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
