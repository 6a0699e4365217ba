"""Reading many files by a few threads: in order, several at once, and not all of them ahead of who takes them."""

import itertools
import threading

import pytest

from data_engine.store import by_threads as module
from data_engine.store.by_threads import by_threads


def test_results_come_in_order_whichever_is_read_first():
    second_is_read = threading.Event()

    def read(item: int) -> int:
        if item == 0:
            assert second_is_read.wait(timeout=20)
        if item == 1:
            second_is_read.set()
        return 10 * item

    assert list(by_threads(read, range(3))) == [0, 10, 20]
    assert list(by_threads(read, [])) == []


def test_an_exception_is_raised_where_its_result_would_be():
    def read(item: int) -> int:
        if item == 2:
            raise ValueError("broken")
        return item

    results = by_threads(read, range(4))
    assert list(itertools.islice(results, 2)) == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(results)


def test_of_many_items_few_are_read_ahead(monkeypatch):
    monkeypatch.setattr(module, "MOST_READ", 5)
    read = []
    results = by_threads(read.append, range(1000))
    next(results)
    results.close()
    assert len(read) <= 5
