"""How far a loop is: a bar on a terminal, else log lines with the time that is left."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from data_engine.duration import duration

# Without a terminal, a line a minute; the first one early, to show that work goes on.
LINE_S, FIRST_LINE_S = 60.0, 10.0
# On a terminal, the bar of what ends sooner would only flicker.
BAR_AFTER_S = 1.0

Item = TypeVar("Item")

log = logging.getLogger(__name__)


def to_stderr() -> None:
    """Write the log lines of `counting` to stderr, the message alone, in a process that sets up no logging."""
    log.setLevel(logging.INFO)
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler())
        log.propagate = False


def counting(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, counted on stderr; `what` they are, in the plural."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, unit=f" {what}", leave=False, dynamic_ncols=True, delay=BAR_AFTER_S)
        return
    started = time.monotonic()
    due = started + FIRST_LINE_S
    for number, item in enumerate(items):
        now = time.monotonic()
        if now >= due:
            due = now + LINE_S
            left = (total - number) * (now - started) / number if number else None
            log.info("%d of %d %s%s", number, total, what, "" if left is None else f", {duration(left)} left")
        yield item


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Inside, a terminal shows what takes seconds; nothing is left of it, and elsewhere nothing is written."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"{what} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
