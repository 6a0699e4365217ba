"""Waiting for what another process does."""

import time
from collections.abc import Callable


def until(holds: Callable[[], object], what: str, patience_s: float = 180) -> None:
    """Poll `holds`, and fail with `what` when it stays false."""
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)
