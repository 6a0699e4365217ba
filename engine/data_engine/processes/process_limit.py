"""The limit on processes and threads: of a user (ulimit -u), or of a container."""

import contextlib
from collections.abc import Iterator

from data_engine.errors import UserError


@contextlib.contextmanager
def naming() -> Iterator[None]:
    """Inside, a process or thread that cannot be started for it is a UserError."""
    try:
        yield
    except (RuntimeError, BlockingIOError) as error:
        # Python raises the one for a thread, the other for a process.
        if isinstance(error, RuntimeError) and "can't start new thread" not in str(error):
            raise
        raise UserError(
            "the system starts no more processes or threads: raise the limit of this user (ulimit -u) or of the "
            "container (pids), or start fewer ranks (NUM_PROCESSES) and threads (--threads)"
        ) from error
