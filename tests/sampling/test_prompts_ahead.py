"""Which prompts run together, and when: the real scheduler over a device that computes nothing."""

from collections.abc import Iterator

import pytest
from fake_runner import FakeRunner, asked

from data_engine.bench.model import drawn_lengths
from data_engine.sampling.native.model_runner import ToRun
from data_engine.sampling.native.scheduler import Scheduler
from data_engine.sampling.requests import PromptRequest, Queue


class Slots(FakeRunner):
    """Notes the prompts of each call, and holds against them what the rows of a step read."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.prompts_a_pass, self.kept, self.calls = 4, {}, []
        self.look = self.check

    def prefill_all(self, waiting: list[ToRun]) -> None:
        self.calls.append(len(waiting))
        self.kept |= {one.slot: one for one in waiting}
        self._note("prompts", self.steps + 1)

    def check(self, rows: list) -> None:
        for row in rows:
            assert self.kept[row.slot].prompt is row.request.prompt
        read = {row.slot for row in rows}
        pages = [page for slot in read for page in self.kept[slot].pages] + [page for row in rows for page in row.pages]
        assert len(pages) == len(set(pages))


@pytest.mark.parametrize("lag", [0, 1])
def test_prompts_of_one_refill_run_before_its_first_draws_four_at_a_time(lag):
    """Ten answers begin with the first step; then one at a time ends."""
    runner = Slots(10, 10, 512)
    requests = asked([(4 + number,) for number in range(12)], prompt_tokens=100)
    found = list(Scheduler(runner, Queue(requests), lag, pauses=False).run())
    assert len(found) == 12
    assert runner.calls[:3] == [4, 4, 2]
    assert runner.calls[3:] == [1, 1]
    assert [what for what, _ in runner.log[:4]] == ["prompts"] * 3 + ["first"]


def calls_of(runner: Slots, lengths: list[tuple], prompt_tokens: int = 100) -> list[int]:
    """How many prompts went in each call; every answer must be finished."""
    found = list(Scheduler(runner, Queue(asked(lengths, prompt_tokens)), 1, pauses=False).run())
    assert len(found) == sum(map(len, lengths))
    assert all(one.finish_reason == "stop" for one in found)
    return runner.calls


def test_where_all_rows_are_in_use_the_prompts_of_the_next_questions_run_with_the_first():
    """Two rows and eight questions of two answers: the first, and then the fifth, takes three with it."""
    assert calls_of(Slots(2, 8, 512, 40), [(5, 6)] * 8) == [4, 4]
    # The question that is begun, of three answers, is not run again; with three questions there are no four.
    assert calls_of(Slots(2, 8, 512, 40), [(5, 6, 7)] * 3) == [3]


def test_no_prompt_is_run_early_for_want_of_a_slot_a_page_or_room_in_the_pass():
    assert calls_of(Slots(2, 2, 512, 40), [(5, 6)] * 4) == [2, 1, 1]
    # A prompt of one page, and two answers that are at first expected to fill four pages each.
    assert calls_of(Slots(2, 8, 512, 13), [(5, 6)] * 3) == [1, 1, 1]
    narrow = Slots(2, 8, 512, 40)
    narrow.share_a_pass = lambda lengths: sum(lengths) <= 200
    assert calls_of(narrow, [(5, 6)] * 8) == [2, 2, 2, 2]


def test_a_prompt_that_was_run_early_gives_its_pages_to_answers_that_need_them_and_runs_again():
    """Answers of one page make the next ones expected to be short, and those fill four."""
    runner = Slots(4, 8, 512, 18)
    calls = calls_of(runner, [(7, 7)] * 20 + [(500, 500)] * 8)
    assert max(calls) > 1
    assert sum(calls) > 28


def test_over_many_questions_prompts_run_four_at_a_time_few_run_twice_and_no_step_is_added():
    """200 questions of 5 answers with lengths as in the bench, 32 rows, pages as such rows take on average on a GPU."""
    alone, together = (Slots(32, 32, 512, int(32 * (1.5 + 2.2 / 5 * 6))) for _ in range(2))
    alone.prompts_a_pass = 1
    lengths = [tuple(one) for one in drawn_lengths(200, 5, 512)]
    assert calls_of(alone, lengths, 616) == [1] * 200
    calls = calls_of(together, lengths, 616)
    assert 200 <= sum(calls) < 205
    assert len(calls) < 80
    assert together.steps < 1.01 * alone.steps


def test_the_next_questions_are_looked_at_in_order_and_stay_in_the_queue():
    taken = []

    def requests() -> Iterator[PromptRequest]:
        for number, request in enumerate(asked([(1, 1), (1,), (1, 1), (1,)])):
            taken.append(number)
            yield request

    queue = Queue(requests())
    assert [(row.number, row.sample_index) for row in queue.of_each_question(3)] == [(0, 0), (1, 0), (2, 0)]
    assert taken == [0, 1, 2]
    queue.pop()
    assert [(row.number, row.sample_index) for row in queue.of_each_question(5)] == [(0, 1), (1, 0), (2, 0), (3, 0)]
    left = []
    while row := queue.first():
        left.append((row.number, row.sample_index))
        queue.pop()
    assert left == [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0)]


def test_where_pages_are_few_every_row_reads_its_own_prompt():
    """Short answers come first, so that more long ones are begun than there are pages for: answers are preempted, and
    prompts that none of them reads are dropped and run again.
    """
    runner = Slots(60, 60, 512, 40)
    lengths = [(7, 7)] * 30 + [(500, 500)] * 20
    requests = [asked([one], 100 + 90 * (number % 5))[0] for number, one in enumerate(lengths)]
    found = list(Scheduler(runner, Queue(requests), 1, pauses=False).run())
    assert len(found) == 100
    assert all(one.finish_reason == "stop" for one in found)
    assert sum(runner.calls) > 50
    assert max(runner.calls) == 4
