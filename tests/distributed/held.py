"""Stands in for the command line: the real engine, which waits for a signal where a test asked for it.

A shard that has published a unit, and finds `hold-S` in the folder of $HOLD (S its index), renames it to `held-S` and
sleeps until a signal comes; after that, and without that file, it works like any other.
"""

import os
import sys
import threading
from pathlib import Path

from data_engine.commands import main
from data_engine.processes import signals
from data_engine.store import units

FOLDER = Path(os.environ["HOLD"])
SIGNALLED = threading.Event()


def note_and_stop(stop: signals.Stop, number: int, frame: object, on_signal=signals.Stop._on_signal) -> None:
    SIGNALLED.set()
    on_signal(stop, number, frame)


def publish_and_hold(*arguments: object, publish=units.publish) -> None:
    publish(*arguments)
    shard = sys.argv[sys.argv.index("--shard_index") + 1] if "--shard_index" in sys.argv else "0"
    asked = FOLDER / f"hold-{shard}"
    if asked.exists() and os.environ.get("RANK", "0") == "0":
        asked.rename(FOLDER / f"held-{shard}")
        # Units are published in a thread, which no signal wakes.
        SIGNALLED.wait()


if __name__ == "__main__":
    if "run" in sys.argv[1:2]:
        units.publish = publish_and_hold
        signals.Stop._on_signal = note_and_stop
    sys.exit(main.main())
