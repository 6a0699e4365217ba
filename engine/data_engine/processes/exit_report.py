"""How a rank says how it ended: to the launch script, and in logs/exit.json to people. Reads RANK and its kin."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from data_engine.store.logs import append

# Exit code of a rank that a signal stopped after it had committed.
STOPPED = 75


def report(**values: int) -> None:
    """Append a line to the file that the launch script reads, which no signal or crash of another rank can lose."""
    path = os.environ.get("DATA_ENGINE_EXIT_FILE")
    if path:
        with contextlib.suppress(FileNotFoundError), open(path, "a") as file:
            file.write(json.dumps({"rank": int(os.environ.get("RANK", 0)), **values}) + "\n")


def announce() -> None:
    """Tell the launch script which process this rank is: from now on it may be signalled."""
    report(pid=os.getpid())


def report_exit(code: int, work_dir: Path) -> None:
    """Leave this rank's exit code for the launch script, and in logs/exit.json for people."""
    report(code=code)
    with contextlib.suppress(OSError):
        line = {"time": time.time(), "rank": int(os.environ.get("RANK", 0)), "code": code, "arguments": sys.argv[1:]}
        append(work_dir / "logs" / "exit.json", line)
