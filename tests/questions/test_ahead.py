"""Threads that work ahead and behind: order, bounds, and failures that come out where they belong."""

import contextlib
import threading

import pytest

from data_engine.questions.prefetch import ahead
from data_engine.store.writer import Writer


def test_results_come_in_order_whatever_finishes_first():
    """The first item cannot finish before the second has."""
    second = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second.wait(10)
        else:
            second.set()
        return item * item

    assert list(ahead(work, range(6), depth=3, workers=2)) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("depth", [1, 5])
def test_no_more_than_the_depth_is_taken_in_advance(depth):
    taken = []
    results = ahead(str, (taken.append(i) or i for i in range(100)), depth=depth)
    assert next(results) == "0"
    assert len(taken) == depth + 1
    assert next(results) == "1"
    assert len(taken) == depth + 2


def test_a_failure_comes_out_where_its_result_would():
    results = ahead(lambda item: 1 // item, [1, 0, 1], depth=5)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_leaving_early_waits_for_no_work_that_hangs_begins_no_other_and_ends_the_threads():
    begun, go_on, threads = set(), threading.Event(), set()
    both = threading.Event()

    def work(item: int) -> None:
        threads.add(threading.current_thread())
        begun.add(item)
        if item:
            if {1, 2} <= begun:
                both.set()
            assert go_on.wait(30)

    results = ahead(work, range(100), depth=5, workers=2)
    next(results)
    assert both.wait(30)
    closing = threading.Thread(target=results.close)
    closing.start()
    closing.join(10)
    left = not closing.is_alive()
    go_on.set()
    closing.join()
    for thread in threads:
        thread.join(30)
    assert left
    assert not any(thread.is_alive() for thread in threads)
    assert begun == {0, 1, 2}


class Closed(contextlib.AbstractContextManager):
    """Notes that it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def __exit__(self, *arguments: object) -> None:
        self.closed = True


def stack(*inside: Closed) -> contextlib.ExitStack:
    held = contextlib.ExitStack()
    for one in inside:
        held.enter_context(one)
    return held


def test_what_is_handed_over_is_done_behind_the_caller_and_one_at_a_time():
    """The first piece of work waits for the caller, who goes on; the second waits for the first."""
    writer, go_on, log, held = Writer(), threading.Event(), [], Closed()
    writer.hand_over(lambda: go_on.wait(10) and log.append(1), stack(held))
    assert not log
    assert not held.closed
    go_on.set()
    writer.hand_over(lambda: log.append(2), stack())
    assert held.closed
    assert writer.wait()
    assert log == [1, 2]
    assert not writer.wait()


def test_a_failure_comes_out_of_the_next_call_which_is_not_done():
    writer, held, other, log = Writer(), Closed(), Closed(), []
    writer.hand_over(lambda: 1 // 0, stack(held))
    with pytest.raises(ZeroDivisionError):
        writer.hand_over(lambda: log.append(1), stack(other))
    assert held.closed
    assert other.closed
    assert not writer.wait()
    assert not log
