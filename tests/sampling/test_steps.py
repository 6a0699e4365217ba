"""The device's side of the sampling loop: rows and pages, tokens read late, memory that runs out."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from prompts import EmbeddedPrompt, prefix

from data_engine.errors import UserError
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import cpu_attention, page_allocator, scheduler
from data_engine.sampling.native.cpu_attention import Lanes, runs
from data_engine.sampling.native.kv_cache import num_slots
from data_engine.sampling.native.model_runner import ModelRunner
from data_engine.sampling.native.page_allocator import PAGE, pages_of
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import TOO_LARGE, Completion, PromptRequest
from data_engine.seeds import seed_for

PARAMS = SamplingParams(temperature=1.0, top_k=20, max_new_tokens=24)


def slow(value: int) -> object:
    """A case that make test leaves to another of the same test."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def asked(instruct, golden_rows, golden_images) -> list[PromptRequest]:
    """Eight questions of different length, ten answers each."""
    found = []
    for number in range(8):
        row = golden_rows[4 * number]
        shared = prefix(instruct, instruct.pixels(golden_images[number], False, 64), row["question"])
        found.append(PromptRequest(EmbeddedPrompt(shared), [seed_for(0, number, i) for i in range(10)]))
    return found


@pytest.fixture(scope="module")
def expected(instruct, asked):
    found = SamplingEngine(instruct, 16, num_slots(16, 10)).sample(asked, PARAMS)
    assert {answer.finish_reason for answer in found} == {"stop", "length"}
    return found


def test_rows_lie_in_order_of_length_so_that_runs_are_few(instruct, asked, monkeypatch):
    """Runs as short as these answers ask for: about as few as if all rows were sorted, and no answer changed."""
    lengths = torch.randint(2, 25, (len(asked), 10), generator=torch.Generator().manual_seed(0)).tolist()
    forced = [PromptRequest(one.prompt, one.keys, ends) for one, ends in zip(asked, lengths, strict=True)]
    params = replace(PARAMS, forced_lengths=True)
    at_once = SamplingEngine(instruct, 80, num_slots(80, 10)).sample(forced, params)
    monkeypatch.setattr(cpu_attention, "WASTE", 4)
    made, fewest = [], []

    class Counted(Lanes):
        def __init__(self, slots, lengths, device):
            super().__init__(slots, lengths, device)
            made.append(len(self.runs))
            fewest.append(len(runs(sorted(lengths, reverse=True))))

    monkeypatch.setattr(cpu_attention, "Lanes", Counted)
    assert SamplingEngine(instruct, 16, num_slots(16, 10)).sample(forced, params) == at_once
    assert max(fewest) > 4
    assert sum(made) < 1.1 * sum(fewest)


@pytest.mark.parametrize("page", [slow(PAGE), 5])
def test_an_operation_for_all_rows_draws_the_same_answers(instruct, asked, expected, monkeypatch, page):
    """What a GPU captures, run without capture: 12 rows are rounded up to what a graph would serve."""
    monkeypatch.setattr(page_allocator, "PAGE", page)
    found = SamplingEngine(instruct, 12, num_slots(12, 10), samples_per_prompt=10).sample(asked, PARAMS)
    assert found == expected


def longest_prompt(asked: list[PromptRequest]) -> int:
    """Pages that the longest of the prompts takes."""
    return pages_of(max(request.prompt.length for request in asked))


@pytest.fixture
def short_of_pages(monkeypatch) -> tuple[list[int], list[int]]:
    """24 tokens in pages of 5, without foresight; tokens of the rows that gave way, slots of the prompts prefilled."""
    gone, prefilled = [], []
    preempt, keep = scheduler.Scheduler._preempt, ModelRunner._keep
    monkeypatch.setattr(scheduler.Scheduler, "_preempt", lambda loop, row: gone.append(row.drawn) or preempt(loop, row))
    monkeypatch.setattr(ModelRunner, "_keep", lambda *given: prefilled.append(given[2]) or keep(*given))
    monkeypatch.setattr(page_allocator, "PAGE", 5)
    blind = lambda self, rows, prompt_tokens=0: len(self.free) > pages_of(prompt_tokens)  # noqa: E731
    monkeypatch.setattr(page_allocator.PageAllocator, "suffice_for_another", blind)
    return gone, prefilled


@pytest.mark.parametrize("lag", [slow(0), 2])
@pytest.mark.parametrize("number", [5, slow(9)])
def test_pages_that_run_out_change_no_answer(instruct, asked, expected, short_of_pages, number, lag):
    """Enough for the longest prompt and one long answer to it, or two: rows give way."""
    number += longest_prompt(asked[:3])
    decoder = SamplingEngine(instruct, 12, num_slots(12, 10), samples_per_prompt=10, num_pages=number)
    decoder.lag = lag
    assert decoder.sample(asked[:3], PARAMS) == expected[:30]
    assert len(short_of_pages[0]) > 10


def test_prompts_whose_answers_all_gave_way_are_dropped_and_run_again(instruct, asked, short_of_pages):
    """An answer of 24 tokens a question, pages for two prompts and three more: two begin, one of which will need five.

    For its second page the other gives way and begins again; for its third, again; for the fourth the other's prompt is
    dropped. Of four questions, that happens to the second, third and fourth.
    """
    long = [replace(asked[0], keys=one.keys[:1], lengths=[24]) for one in asked[:4]]
    params = replace(PARAMS, forced_lengths=True)
    expected = SamplingEngine(instruct, 8, 8).sample(long, params)
    gone, prefilled = short_of_pages
    prefilled.clear()
    number = 2 * longest_prompt(asked[:1]) + 3
    assert SamplingEngine(instruct, 8, 8, samples_per_prompt=1, num_pages=number).sample(long, params) == expected
    assert gone == [6, 5] * 3
    assert len(prefilled) == 4 + 3


@pytest.mark.parametrize("number", [11, slow(30)])
def test_with_foresight_pages_do_not_run_out(instruct, asked, expected, monkeypatch, number):
    """Most of these answers fill all of their pages; two prompts and so many pages fit."""
    monkeypatch.setattr(scheduler.Scheduler, "_preempt", lambda *_: pytest.fail("a row gave way"))
    monkeypatch.setattr(page_allocator, "PAGE", 5)
    number += 2 * longest_prompt(asked)
    decoder = SamplingEngine(instruct, 12, num_slots(12, 10), samples_per_prompt=10, num_pages=number)
    assert decoder.sample(asked[:4], PARAMS) == expected[:40]


def beside_a_giant(asked: list[PromptRequest], num_pages: int) -> list[PromptRequest]:
    """Three questions, of which the first one's prompt has a token too many beside an answer of 5 pages of 5."""
    tokens = 5 * (num_pages - 5) + 1
    giant = EmbeddedPrompt(torch.zeros(tokens, asked[0].prompt.embeds_PD.shape[1]))
    return [replace(asked[0], prompt=giant), *asked[1:3]]


def is_left_out(answers: list[Completion]) -> bool:
    found = [(answer.sample_index, answer.finish_reason, answer.token_ids) for answer in answers]
    return found == [(index, TOO_LARGE, []) for index in range(10)]


def test_a_prompt_that_the_pool_does_not_hold_is_left_out_and_costs_the_others_nothing(
    instruct, asked, expected, monkeypatch
):
    """It is not even run. Alone, it is an error of the settings."""
    monkeypatch.setattr(page_allocator, "PAGE", 5)
    prefilled, prefill = [], ModelRunner.prefill_all
    noted = lambda runner, waiting: prefilled.extend(one.prompt for one in waiting) or prefill(runner, waiting)  # noqa: E731
    monkeypatch.setattr(ModelRunner, "prefill_all", noted)
    number = longest_prompt(asked) + 5
    three = beside_a_giant(asked, number)
    decoder = SamplingEngine(instruct, 12, num_slots(12, 10), samples_per_prompt=10, num_pages=number)
    found = decoder.sample(three, PARAMS)
    assert found[10:] == expected[10:30]
    assert is_left_out(found[:10])
    assert decoder.retries == 0
    assert three[1].prompt in prefilled
    assert three[0].prompt not in prefilled
    with pytest.raises(UserError, match="no room for a single question"):
        SamplingEngine(instruct, 12, 4, samples_per_prompt=10, num_pages=number).sample(three[:1], PARAMS)


def test_memory_that_runs_out_behind_a_prompt_that_is_left_out_loses_no_answer(instruct, asked, expected, monkeypatch):
    monkeypatch.setattr(page_allocator, "PAGE", 5)
    calls, prefill = [], ModelRunner.prefill_all

    def fails_once(*given):
        calls.append(None)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        return prefill(*given)

    monkeypatch.setattr(ModelRunner, "prefill_all", fails_once)
    # Half of the pages do for the others.
    number = 2 * (longest_prompt(asked) + 5)
    decoder = SamplingEngine(instruct, 12, num_slots(12, 10), samples_per_prompt=10, num_pages=number)
    found = decoder.sample(beside_a_giant(asked, number), PARAMS)
    assert is_left_out(found[:10])
    assert found[10:] == expected[10:30]
    assert decoder.retries == 1


def test_half_the_rows_have_half_the_pages_and_never_less_than_a_quarter_or_the_longest_sequence(instruct):
    """4,096 positions are 32 pages of 128, and one more where both prompt and answer fill their last in part."""
    instruct_of = lambda pages: SamplingEngine(instruct, 16, 4, samples_per_prompt=10, num_pages=pages)  # noqa: E731
    assert [instruct_of(400)._pages_for(rows, 24) for rows in (16, 8, 4, 2, 1)] == [400, 200, 100, 50, 33]
    assert [instruct_of(100)._pages_for(rows, 24) for rows in (16, 8, 4, 2, 1)] == [100, 50, 25, 25, 25]


@pytest.mark.parametrize("lag", [slow(1), 3])
def test_tokens_that_are_read_late_change_no_answer(instruct, asked, expected, lag):
    late = SamplingEngine(instruct, 16, num_slots(16, 10))
    late.lag = lag
    assert late.sample(asked, PARAMS) == expected


@pytest.mark.parametrize("slots", [1, slow(2)])
def test_few_slots_for_prefixes_change_no_answer(instruct, asked, expected, slots):
    assert SamplingEngine(instruct, 16, slots).sample(asked, PARAMS) == expected


def test_a_decoder_gives_the_same_answers_for_one_unit_after_another(instruct, asked, expected):
    """Caches that were used before, by longer and shorter prefixes, and with a penalty that leaves marks."""
    decoder = SamplingEngine(instruct, 16, num_slots(16, 10))
    penalty = SamplingParams(1.0, 0, 0.9, 1.3, 20)
    first = decoder.sample(asked[:2], penalty)
    assert decoder.sample(asked, PARAMS) == expected
    assert decoder.sample(asked, PARAMS) == expected
    assert decoder.sample(asked[:2], penalty) == first
    assert decoder.sample(asked[:2], penalty) == first


@pytest.mark.parametrize("failing", [slow(1), slow(4), 40, slow(90)])
def test_out_of_memory_halves_the_rows_and_keeps_what_is_finished(
    instruct, asked, expected, monkeypatch, caplog, failing
):
    """The decoder's call number `failing` runs out of memory: prefill, first step, or late."""
    calls, forward = [], scheduler.ModelRunner.next
    prefill = scheduler.ModelRunner.prefill

    def fails(original):
        def call(*arguments):
            calls.append(original.__name__)
            if len(calls) == failing:
                raise torch.OutOfMemoryError("no room")
            return original(*arguments)

        return call

    monkeypatch.setattr(scheduler.ModelRunner, "next", fails(forward))
    monkeypatch.setattr(scheduler.ModelRunner, "prefill", fails(prefill))
    decoder = SamplingEngine(instruct, 16, num_slots(16, 10))
    given_out = []
    monkeypatch.setattr(
        scheduler, "Completion", lambda *a, made=scheduler.Completion: given_out.append(a[:2]) or made(*a)
    )
    assert decoder.sample(asked, PARAMS) == expected
    assert decoder.retries == 1
    assert "8 answers at a time" in caplog.text
    # Nothing that was finished before is drawn again.
    assert len(given_out) == len(set(given_out)) == 80
    assert decoder.sample(asked, PARAMS) == expected
    assert decoder.retries == 0


def out_of_memory_for(monkeypatch, too_large: Callable[[ModelRunner, EmbeddedPrompt], bool]) -> None:
    """A prompt for which `too_large(steps, prompt)` holds never fits."""
    prefill = ModelRunner.prefill

    def call(self, prompt, slot, pages):
        if too_large(self, prompt):
            raise torch.OutOfMemoryError("no room")
        return prefill(self, prompt, slot, pages)

    monkeypatch.setattr(ModelRunner, "prefill", call)


@pytest.mark.parametrize("number", [slow(0), 3, slow(7)])
def test_a_question_that_exceeds_the_memory_alone_costs_the_others_nothing(
    instruct, asked, expected, monkeypatch, caplog, number
):
    giant = asked[number].prompt
    out_of_memory_for(monkeypatch, lambda steps, prompt: prompt is giant)
    decoder = SamplingEngine(instruct, 16, num_slots(16, 10))
    found = decoder.sample(asked, PARAMS)
    assert [answer for answer in found if answer.request != number] == [
        answer for answer in expected if answer.request != number
    ]
    left = [answer for answer in found if answer.request == number]
    assert [(a.sample_index, a.finish_reason, a.token_ids) for a in left] == [(i, TOO_LARGE, []) for i in range(10)]
    # 16 rows, 8, 4, 2, 1; without it, half of 16 again.
    assert decoder.retries == 5
    assert re.findall(r"goes on with (\d+) answers at a time", caplog.text) == ["8", "4", "2", "1", "8"]


def test_a_row_that_runs_out_of_memory_alone_keeps_its_finished_answers(instruct, asked, expected, monkeypatch):
    """The giant fits until one of its rows has 12 tokens, of which its shorter answers know nothing."""
    lengths = [{len(answer.token_ids) > 11 for answer in expected if answer.request == n} for n in range(len(asked))]
    giant = lengths.index({True, False})
    advance, loops = ModelRunner.next, []

    def call(self, rows):
        if any(row.number == giant and row.drawn > 11 for row in loops[-1].rows):
            raise torch.OutOfMemoryError("no room")
        return advance(self, rows)

    monkeypatch.setattr(
        scheduler.Scheduler, "run", lambda loop, run=scheduler.Scheduler.run: loops.append(loop) or run(loop)
    )
    monkeypatch.setattr(ModelRunner, "next", call)
    found = SamplingEngine(instruct, 16, num_slots(16, 10)).sample(asked, PARAMS)
    kept = [answer for answer in found if answer.finish_reason != TOO_LARGE]
    assert [answer for answer in kept if answer.request != giant] == [a for a in expected if a.request != giant]
    own = [answer for answer in kept if answer.request == giant]
    assert own
    assert all(answer in expected and len(answer.token_ids) <= 11 for answer in own)
    assert len(found) == 80


def test_memory_that_no_question_fits_is_an_error(instruct, asked, monkeypatch):
    out_of_memory_for(monkeypatch, lambda *_: True)
    with pytest.raises(UserError, match="no room for a single question"):
        SamplingEngine(instruct, 16, 4).sample(asked, PARAMS)
