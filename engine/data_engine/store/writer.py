"""Units are written behind the back of the rank that computes them, by one thread."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """One thread that does what is handed to it, one thing at a time, at most one behind the caller.

    What it raises comes out of the caller's next `hand_over` or `wait`; nothing is handed over behind a failure.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "writer")
        self._last: Future[None] | None = None

    def hand_over(self, work: Callable[[], None], done: contextlib.ExitStack) -> None:
        """Do `work`, and close `done` behind it, whether it failed or not."""
        with done:
            self.wait()
            mine = done.pop_all()
        self._last = self._pool.submit(_do, work, mine)

    def wait(self) -> bool:
        """Until all that was handed over is done; True if there was something."""
        if self._last is None:
            return False
        last, self._last = self._last, None
        last.result()
        return True


def _do(work: Callable[[], None], done: contextlib.ExitStack) -> None:
    with done:
        work()
