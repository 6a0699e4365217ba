"""The warnings of a rank in its log, where `status` finds them; its last error, too."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from data_engine.store import logs

# Of one process. A run of weeks may warn without end, and whoever watches it reads the logs.
MOST_WARNINGS = 200


class _IntoLog(logging.Handler):
    """Writes warnings and errors to the log of this process, as many as MOST_WARNINGS; a failing disk loses them."""

    def __init__(self, work_dir: Path, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._work_dir, self._rank, self._left = work_dir, rank, MOST_WARNINGS

    def emit(self, record: logging.LogRecord) -> None:
        if self._left <= 0:
            return
        self._left -= 1
        message = record.getMessage() if self._left else "more warnings are on the standard error of the rank alone"
        with contextlib.suppress(OSError):
            logs.warn(self._work_dir, self._rank, record.levelname.lower(), message)


@contextlib.contextmanager
def logged_warnings(work_dir: Path, rank: int) -> Iterator[None]:
    """Inside, what this program warns of is also written to the log of this process, and so is what ends the body."""
    handler, logger = _IntoLog(work_dir, rank), logging.getLogger("data_engine")
    logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):
            logs.warn(work_dir, rank, "error", f"{type(error).__name__}: {error}")
        raise
    finally:
        logger.removeHandler(handler)
