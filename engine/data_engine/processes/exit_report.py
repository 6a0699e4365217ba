"""A rank's report of its process id and exit code: to the launch script, and in its log. Reads RANK."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from data_engine.store import logs


def _rank() -> int:
    """What is no number, Ranks refuses."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def report(**values: int) -> None:
    """Append a line to the file that the launch script reads; it survives signals and crashes of other ranks."""
    path = os.environ.get("DATA_ENGINE_EXIT_FILE")
    if path:
        with contextlib.suppress(FileNotFoundError), open(path, "a") as file:
            file.write(json.dumps({"rank": _rank(), **values}) + "\n")


def announce() -> None:
    """Report this rank's process id to the launch script, which may send it signals from now on."""
    report(pid=os.getpid())


def report_exit(code: int, work_dir: Path) -> None:
    """Report this rank's exit code to the launch script, and write it to the rank's log."""
    report(code=code)
    with contextlib.suppress(OSError):
        rank = _rank()
        line = {"time": time.time(), "rank": rank, "exit_code": code, "arguments": sys.argv[1:]}
        logs.append(logs.log_path(work_dir, rank), line)
