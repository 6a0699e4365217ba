"""Waiting for what another process does, and looking at it."""

import time
from collections.abc import Callable
from pathlib import Path


def until(holds: Callable[[], object], what: str, patience_s: float = 180) -> None:
    """Poll `holds`, and fail with `what` when it stays false."""
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def told_of(pid: int | str, name: str) -> bytes:
    """/proc/PID/NAME; empty where the process has ended, as it may while others are looked at."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
