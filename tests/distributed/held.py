"""Stands in for the command line: the real engine, which waits for a signal where a test asked for it.

A shard that has published a unit, and finds `hold-S` in the folder of $HOLD (S its index), renames it to `held-S` and
sleeps until a signal comes; after that, and without that file, it works like any other.
"""

import os
import signal
import sys
from pathlib import Path

from data_engine import cli, units

FOLDER = Path(os.environ["HOLD"])


def publish_and_hold(*arguments: object, publish=units.publish) -> None:
    publish(*arguments)
    shard = sys.argv[sys.argv.index("--shard_index") + 1] if "--shard_index" in sys.argv else "0"
    asked = FOLDER / f"hold-{shard}"
    if asked.exists() and os.environ.get("RANK", "0") == "0":
        asked.rename(FOLDER / f"held-{shard}")
        signal.pause()


if __name__ == "__main__":
    if "run" in sys.argv[1:2]:
        units.publish = publish_and_hold
    sys.exit(cli.main())
