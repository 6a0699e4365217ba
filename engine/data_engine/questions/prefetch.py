"""Work done ahead of its turn by threads: images are decoded while the model is busy, files written behind its back."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")

# Pillow and numpy let go of the interpreter, so that two threads decode while the model's calls are made.
WORKERS = 2
# How many images are decoded before they are asked for: enough for a model to start on many questions at once.
DEPTH = 16


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = DEPTH, workers: int = WORKERS
) -> Iterator[Result]:
    """function(item) of each item, in order, at most `depth` of them computed before they are asked for.

    An exception comes out where its result would. Items themselves are taken in the caller's thread.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, "ahead")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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
