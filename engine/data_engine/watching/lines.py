"""Watching without a screen: a block of lines, or a line of JSON, again and again."""

import contextlib
import os
import sys
import time
from collections.abc import Callable

from data_engine.processes import output
from data_engine.watching.progress import Progress
from data_engine.watching.table import table

Look = Callable[[], Progress]


def waits_for_start(has_not_begun: Callable[[], bool], every_s: float) -> bool:
    """Return once a run has begun; False where Ctrl-C was pressed before."""
    try:
        if has_not_begun():
            print("no rank has begun yet; waiting for the first", file=sys.stderr, flush=True)
        while has_not_begun():
            time.sleep(every_s)
    except KeyboardInterrupt:
        return False
    return True


def watch_lines(look: Look, every_s: float, shown: Callable[[Progress], str]) -> int:
    """Print every `every_s` seconds what is shown of the progress, until all is done or nobody reads it any more."""
    # Ctrl-C ends the watching; it is no failure.
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            progress = look()
            print(shown(progress), flush=True)
            if progress.is_done or output.is_silent(sys.stdout):
                break
            time.sleep(every_s)
    return 0


def block(progress: Progress) -> str:
    """The plain table behind the time of day, and an empty line."""
    return f"{time.strftime('%H:%M:%S', time.localtime(progress.time))}  {table(progress)}\n"


def can_draw() -> bool:
    """Whether standard output is a terminal on which a screen can be drawn, by a process in its foreground."""
    if not sys.stdout.isatty():
        return False
    # A terminal that is not the one of this process has no foreground to ask for.
    with contextlib.suppress(OSError):
        if os.tcgetpgrp(sys.stdout.fileno()) != os.getpgrp():
            return False
    # Imported late: a pipe needs no library of terminals.
    from rich.console import Console

    return not Console(file=sys.stdout).is_dumb_terminal
