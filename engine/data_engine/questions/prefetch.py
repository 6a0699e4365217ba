"""Prefetching: threads decode the next images while the model computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")

# Pillow and numpy release the GIL, so two threads decode while the main thread calls the model.
WORKERS = 2
# Images decoded in advance: enough for a batch of many new questions.
DEPTH = 16


class Ahead(Iterator[Result]):
    """function(item) of each item, in order; up to `depth` results are computed in advance.

    An exception is raised where its result would be. `items` is iterated in the caller's thread.
    """

    def __init__(
        self, function: Callable[[Item], Result], items: Iterable[Item], depth: int = DEPTH, workers: int = WORKERS
    ) -> None:
        self._function, self._items, self._depth = function, iter(items), depth
        self._waiting: deque[Future[Result]] = deque()
        self._pool = ThreadPoolExecutor(workers, "ahead")

    def begin(self) -> None:
        """Start on as many items as are computed in advance."""
        while len(self._waiting) <= self._depth:
            try:
                item = next(self._items)
            except StopIteration:
                return
            # Where it would be, too.
            except Exception as error:
                failed: Future[Result] = Future()
                failed.set_exception(error)
                self._waiting.append(failed)
                self._items = iter(())
                return
            self._waiting.append(self._pool.submit(self._function, item))

    def __next__(self) -> Result:
        self.begin()
        if not self._waiting:
            self.close()
            raise StopIteration
        return self._waiting.popleft().result()

    def close(self) -> None:
        """Drop what has not begun; what has is not waited for, since it may hang."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = DEPTH, workers: int = WORKERS
) -> Iterator[Result]:
    """The results of Ahead, which is closed where the iteration is left early."""
    results = Ahead(function, items, depth, workers)
    try:
        yield from results
    finally:
        results.close()
