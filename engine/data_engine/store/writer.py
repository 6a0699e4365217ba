"""A thread that publishes a unit while the rank computes the next one."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """One thread that does one piece of work at a time; the caller waits before it hands over a second.

    The caller's next `hand_over` or `wait` raises what the work raised, and nothing is handed over after a failure.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "writer")
        self._last: Future[None] | None = None

    def hand_over(self, work: Callable[[], None], done: contextlib.ExitStack) -> None:
        """Do `work` in the thread, then close `done`, whether it failed or not."""
        with done:
            self.wait()
            mine = done.pop_all()
        self._last = self._pool.submit(_do, work, mine)

    def wait(self) -> bool:
        """Wait until the work is done; True if there was any."""
        if self._last is None:
            return False
        last, self._last = self._last, None
        last.result()
        return True


def _do(work: Callable[[], None], done: contextlib.ExitStack) -> None:
    with done:
        work()
