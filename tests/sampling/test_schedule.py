"""The order of launches and reads, and the rows in use, of the real scheduler without a model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_runner import FakeRunner, asked, tasks_needed

from data_engine.bench.model import drawn_lengths
from data_engine.sampling.native.backend import NativeBackend
from data_engine.sampling.native.scheduler import SamplingEngine, Scheduler
from data_engine.sampling.requests import Completion, Queue
from data_engine_kernels import members_of
from data_engine_kernels.work_list import DEFAULT, Division, num_programs, work_list

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


def sampled(units: np.ndarray, num_rows: int, one_queue: bool = True, look=lambda rows: None) -> FakeRunner:
    """Units of answers of these lengths, submitted as a rank submits them: when the back end wants more."""
    # Each row may be of another question; as many pages as such rows take on average on a GPU.
    runner = FakeRunner(num_rows, num_rows, LONGEST, int(num_rows * (1.5 + 2.2 / units.shape[-1] * 6)))
    runner.look = look
    engine = SamplingEngine(SimpleNamespace(device=torch.device("cpu"), is_split=False), num_rows, num_rows, 10)
    engine.lag, engine.is_invariant, engine._runner_for = 1, one_queue, lambda rows, params: runner
    backend = NativeBackend(engine, SimpleNamespace(params=None))
    waiting, in_hand, found = list(units[::-1]), 0, []
    while waiting or in_hand:
        while waiting and (backend.wants_more or not in_hand):
            in_hand += waiting[-1].size
            backend.submit(asked(waiting.pop()))
        ended = backend.poll()
        in_hand -= len(ended)
        found += ended
    assert sorted((one.request, one.sample_index) for one in found) == list(
        np.ndindex(len(units) * units.shape[1], units.shape[2])
    )
    assert all(len(one.token_ids) == units.reshape(-1, units.shape[-1])[one.request, one.sample_index] for one in found)
    return runner


def in_use(runner: FakeRunner) -> float:
    """Of the rows of all steps, the share that added a token to an answer."""
    return sum(runner.used) / (len(runner.used) * runner.caches.num_rows)


def test_over_a_thousand_units_the_rows_are_in_use_and_the_host_never_waits_for_the_newest_step():
    """A question of 5 answers a unit, 32 rows, lengths as in the bench: the last answers are part of it."""
    runner = sampled(drawn_lengths(1000, 5, LONGEST).reshape(1000, 1, 5), 32)
    assert in_use(runner) > 0.95
    assert read_too_early(runner.log, 1) == []


@pytest.mark.slow
def test_over_a_thousand_units_of_a_gpu_s_size_more_rows_are_in_use_than_unit_by_unit():
    """98 questions of 10 answers a unit and 245 rows in docs/gpu.md; here about a third of each."""
    units = drawn_lengths(32 * 1000, 10, LONGEST).reshape(1000, 32, 10)
    assert in_use(sampled(units, 68)) > 0.95
    assert 0.55 < in_use(sampled(units[:100], 68, one_queue=False)) < 0.7


# Decode attention of LLaVA-1.5-7B on an H100, prompts of 640 tokens and room for 4,096: 32 key/value heads, 132
# multiprocessors.
BY = Division(
    DEFAULT.split, DEFAULT.own, prefix_parts=-(-4096 // DEFAULT.split), own_parts=-(-LONGEST // DEFAULT.own), shared=1,
    queries=16, tiles=1,
)  # fmt: skip
GROUPS, MULTIPROCESSORS, PROMPT = 32, 132, 640


class Launches:
    """Of the launches of decode attention: the tasks, and the programs that get none.

    A task is a part of one key/value head that has a token and a query; each is computed by one program.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.most = num_rows * (BY.tiles * BY.prefix_parts + BY.own_parts) * GROUPS
        self.steps = self.tasks = self.idle = 0

    def look(self, rows) -> None:
        slots, suffixes = [row.slot for row in rows], [row.drawn for row in rows]
        needed = tasks_needed(slots, suffixes, [PROMPT] * self.num_rows, BY)
        if self.steps % 500 == 0:
            assert self.listed(slots, suffixes) == needed
        self.steps += 1
        self.tasks += needed * GROUPS
        self.idle += max(0, num_programs(MULTIPROCESSORS, self.num_rows * GROUPS, self.most) - needed * GROUPS)

    def listed(self, slots: list[int], suffixes: list[int]) -> int:
        """The count of the list that the kernel walks, with the rows that are idle."""
        idle = self.num_rows - len(slots)
        which, own = torch.tensor(slots + [-1] * idle), torch.tensor(suffixes + [0] * idle)
        prefixes, members = torch.full((self.num_rows,), PROMPT), members_of(which, self.num_rows, 10)
        return int(work_list(prefixes, own, members, BY).count)

    def per_task(self) -> float:
        """Programs that a task takes, those without any counted in."""
        return (self.tasks + self.idle) / self.tasks

    def of_a_grid_per_task(self) -> float:
        """The same, where each part that the caches have room for is a program."""
        return self.steps * self.most / self.tasks


def test_over_a_thousand_units_few_programs_of_decode_attention_have_nothing_to_do():
    units = drawn_lengths(1000, 5, LONGEST).reshape(1000, 1, 5)
    launches = Launches(32)
    sampled(units, 32, look=launches.look)
    assert launches.steps > 3000
    assert launches.per_task() < 1.1
    assert launches.of_a_grid_per_task() > 2


def steps_of(prompts: list[int], num_pages: int) -> FakeRunner:
    """Questions of 10 answers with lengths as in the bench, 60 rows."""
    runner = FakeRunner(60, 60, LONGEST, num_pages)
    lengths = drawn_lengths(len(prompts), 10, LONGEST)
    requests = [asked([one], tokens)[0] for one, tokens in zip(lengths, prompts, strict=True)]
    found = list(Scheduler(runner, Queue(requests), 1, pauses=False).run())
    assert all(one.finish_reason == "stop" for one in found)
    assert len(found) == 10 * len(prompts)
    return runner


def test_a_long_prompt_costs_its_own_pages():
    """60 rows take 60 x 1.4 pages and 13 prompts of 5 pages. One prompt in a hundred has 3,000 tokens, 24 pages."""
    usual = steps_of([640] * 200, 60 * 3)
    mixed = steps_of(([640] * 99 + [3000]) * 2, 60 * 3)
    assert in_use(usual) > 0.9
    assert mixed.steps < 1.05 * usual.steps


def test_few_pages_mean_fewer_answers_at_a_time_and_every_one_is_finished():
    """As many pages as the longest prompt, of 6, and an answer of 512 tokens take."""
    runner = steps_of([640] * 19 + [641], 10)
    assert max(runner.used) < 6
