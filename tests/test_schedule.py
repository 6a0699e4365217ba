"""The order of launches and reads, and the rows in use, of the real scheduler without a model."""

import pytest
from fake_runner import FakeRunner, asked

from data_engine.bench.model import drawn_lengths
from data_engine.sampling.native.kv_cache import num_slots
from data_engine.sampling.native.scheduler import Scheduler
from data_engine.sampling.requests import Completion, Queue

LONGEST = 512


def run(runner: FakeRunner, lengths, lag: int) -> list[Completion]:
    return list(Scheduler(runner, Queue(asked(lengths)), lag, pauses=False).run())


def read_too_early(log: list[tuple[str, int]], lag: int) -> list[int]:
    """The steps whose tokens, or whose first draws, were read before the step `lag` later was launched."""
    last = max(step for what, step in log if what == "launch")
    launched, early = 0, []
    for what, step in log:
        launched = step if what == "launch" else launched
        if what == "read" and launched < min(step + lag, last):
            early.append(step)
    return early


@pytest.mark.parametrize("lag", [1, 2])
def test_a_step_is_read_after_the_next_one_was_launched_also_where_answers_begin(lag):
    """Three rows, and answers that end in almost every step, so that one begins in almost every step too."""
    runner = FakeRunner(3, 4, LONGEST)
    found = run(runner, [(2, 3, 4), (1, 5, 2), (3, 3, 1), (2, 4, 6)], lag)
    assert sorted(len(answer.token_ids) for answer in found) == [1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6]
    begun = [step for what, step in runner.log if what == "first"]
    assert len(begun) > 3
    assert len(begun) == len(set(begun)), "more than one refill before a step"
    assert read_too_early(runner.log, lag) == []


def test_what_was_launched_is_read_no_later_than_it_must_be():
    """With lag 1: between the launch of the next step and of the one behind it."""
    runner = FakeRunner(3, 4, LONGEST)
    run(runner, [(2, 3, 4), (1, 5, 2), (3, 3, 1), (2, 4, 6)], 1)
    launched = 0
    for what, step in runner.log:
        launched = step if what == "launch" else launched
        assert what != "read" or launched <= step + 1


def test_without_lag_a_step_is_read_before_anything_else_is_launched():
    runner = FakeRunner(3, 4, LONGEST)
    run(runner, [(2, 3, 4), (1, 5, 2), (3, 3, 1)], 0)
    assert [what for what, _ in runner.log[1::2]] == ["read"] * (len(runner.log) // 2)


@pytest.mark.parametrize("lag", [0, 1])
def test_answers_of_one_token_take_no_step(lag):
    runner = FakeRunner(3, 4, 1)
    assert len(run(runner, [(1, 1), (1, 1)], lag)) == 4
    assert runner.steps == 0


def test_over_a_thousand_units_of_drawn_lengths_the_host_never_waits_for_the_newest_step():
    """A question of 10 answers a unit, 32 rows, lengths as in the bench."""
    runner = FakeRunner(32, num_slots(32, 10), LONGEST)
    lengths = drawn_lengths(1000, 10, LONGEST)
    found = run(runner, lengths, 1)
    assert sum(len(answer.token_ids) for answer in found) == lengths.sum()
    assert read_too_early(runner.log, 1) == []
