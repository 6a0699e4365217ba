"""Stands in for the command line: the real engine, which stops itself (SIGSTOP) right before it publishes something.

$STOP_BEFORE is the name of the file or folder that a rename or link would put in its place then; the test sends
SIGCONT. Claims lapse after $LAPSE_S seconds, where that is set.
"""

import os
import signal
import sys
from pathlib import Path

from data_engine.commands import main
from data_engine.store import claims

STOP_BEFORE = os.environ.get("STOP_BEFORE")


def stop_before(name: str) -> None:
    original = getattr(os, name)

    def wrapped(source: object, target: object) -> None:
        global STOP_BEFORE
        if Path(target).name == STOP_BEFORE:
            STOP_BEFORE = None
            os.kill(os.getpid(), signal.SIGSTOP)
        original(source, target)

    setattr(os, name, wrapped)


def stop_before_scratch(path: object, mode: int = 0o777, mkdir=os.mkdir) -> None:
    """$STOP_BEFORE is "scratch": before the folder in which everything is made."""
    global STOP_BEFORE
    if STOP_BEFORE == "scratch" and Path(path).name.startswith(".pairing."):
        STOP_BEFORE = None
        os.kill(os.getpid(), signal.SIGSTOP)
    mkdir(path, mode)


if __name__ == "__main__":
    os.mkdir = stop_before_scratch
    for name in ("rename", "replace", "link"):
        stop_before(name)
    claims.LAPSE_S = float(os.environ.get("LAPSE_S", claims.LAPSE_S))
    sys.exit(main.main())
