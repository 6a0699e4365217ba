"""Many files read by a few threads: a shared file system takes some milliseconds to open each."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")

NUM_THREADS = 8
# The most results that are read before they are taken.
MOST_READ = 64


def by_threads(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """read(item) of each item, in order; an exception is raised where its result would be."""
    items = list(items)
    with ThreadPoolExecutor(NUM_THREADS, "read") as pool:
        for first in range(0, len(items), MOST_READ):
            yield from pool.map(read, items[first : first + MOST_READ])
