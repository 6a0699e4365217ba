"""Work done ahead of its turn by threads: images are decoded while the model is busy."""

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
