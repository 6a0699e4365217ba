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


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = DEPTH, workers: int = WORKERS
) -> Iterator[Result]:
    """function(item) of each item, in order; up to `depth` results are computed in advance.

    An exception is raised where its result would be yielded. `items` is iterated in the caller's thread. Left early, it
    drops what has not begun and does not wait for what has, which may hang.
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
        pool.shutdown(wait=False, cancel_futures=True)
