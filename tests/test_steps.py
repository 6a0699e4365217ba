"""The device's side of the sampling loop: attention of a step, tokens read late, memory that runs out."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from prompts import EmbeddedPrompt, prefix
from torch import Tensor

from data_engine.errors import UserError
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import cpu_attention, page_allocator, scheduler
from data_engine.sampling.native.cpu_attention import EagerRows, Lanes, runs
from data_engine.sampling.native.kv_cache import KVCache, num_slots
from data_engine.sampling.native.model_runner import ModelRunner
from data_engine.sampling.native.page_allocator import PAGE
from data_engine.sampling.native.paged_attention import FusedRows
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import TOO_LARGE, PromptRequest
from data_engine.seeds import seed_for

PARAMS = SamplingParams(temperature=1.0, top_k=20, max_new_tokens=24)


def gathered_attention(query, prefix_keys, prefix_values, prefix_lengths, keys, values, lengths, slots, scale):
    """The second, obvious formula: each row gets a copy of its prefix, and one softmax over all it sees."""
    out = []
    for row in range(len(query)):
        slot, shared = slots[row], query.shape[1] // keys.shape[1]
        both = [
            torch.cat([prefix[slot, :, : prefix_lengths[slot]], own[row, :, : lengths[row]]], dim=1)
            for prefix, own in ((prefix_keys, keys), (prefix_values, values))
        ]
        key, value = (part.repeat_interleave(shared, 0) for part in both)
        weights = (torch.einsum("hd,hsd->hs", query[row], key) * scale).softmax(-1)
        out.append(torch.einsum("hs,hsd->hd", weights, value))
    return torch.stack(out)


def in_pages_of(paged: KVCache, made: KVCache) -> None:
    """The same contents in pages, handed out from the last to the first; those that no length reaches stay page 0."""
    paged.reserve(made.prefix_tokens)
    paged.state_5R[:], paged.prefix_lengths_Q[:] = made.state_5R, made.prefix_lengths_Q
    paged.prefix_keys[1][:], paged.prefix_values[1][:] = made.prefix_keys[1], made.prefix_values[1]
    free = list(range(1, paged.num_pages))
    for row, length in enumerate(made.lengths_R.tolist()):
        for number in range(-(-length // PAGE)):
            paged.pages_RC[row, number] = page = free.pop()
            own = slice(number * PAGE, min((number + 1) * PAGE, made.suffix_tokens))
            for pool, whole in ((paged.suffix_keys, made.suffix_keys), (paged.suffix_values, made.suffix_values)):
                part = whole[1][row, :, own]
                pool[1][page, :, : part.shape[1]] = part


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


@pytest.mark.parametrize("family", ["instruct", "omni_instruct"])
def test_a_step_attends_as_one_softmax_over_prefix_and_suffix(family, request):
    """Both layouts, with and without grouped-query heads, on made full of noise; rows out of order and ragged."""
    model = request.getfixturevalue(family)
    config = model.decoder.config
    groups, heads = config.num_key_value_heads, config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    slots, lengths, prefix_lengths = [2, 0, 2, 1, 0, 2], [300, 1, 7, 7, 8, 2], [5, 70, 31]
    made = KVCache(model, len(slots), 3, 320)
    made.reserve(max(prefix_lengths))
    torch.manual_seed(0)
    for cache in (made.prefix_keys, made.prefix_values, made.suffix_keys, made.suffix_values):
        cache[1].normal_()
    made.slots_R[:], made.lengths_R[:] = torch.tensor(slots), torch.tensor(lengths)
    made.prefix_lengths_Q[:] = torch.tensor(prefix_lengths)
    query = torch.randn(6, heads, 1, width)
    key, value = torch.randn(2, 6, groups, 1, width)
    which = torch.arange(6)
    eager = EagerRows(made, Lanes(slots, lengths, query.device), prefix_lengths, 6)
    got = eager.attend(1, query, key, value, 0.3)
    paged = KVCache(model, len(slots), 3, 320, paged=True)
    in_pages_of(paged, made)
    fused = FusedRows(paged, which, 3).attend(1, query, key, value, 0.3)
    pools = [
        made.prefix_keys[1],
        made.prefix_values[1],
        prefix_lengths,
        made.suffix_keys[1],
        made.suffix_values[1],
    ]
    wanted = gathered_attention(query[:, :, 0], *pools, lengths, slots, 0.3)[:, :, None]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused, wanted, rtol=1e-5, atol=1e-5)
    for row, length in enumerate(lengths):
        assert torch.equal(made.suffix_keys[1][row, :, length - 1], key[row, :, 0])
        assert torch.equal(made.suffix_values[1][row, :, length - 1], value[row, :, 0])
        page, place = paged.pages_RC[row, (length - 1) // PAGE], (length - 1) % PAGE
        assert torch.equal(paged.suffix_keys[1][page, :, place], key[row, :, 0])
        assert torch.equal(paged.suffix_values[1][page, :, place], value[row, :, 0])


def test_rows_of_similar_length_make_a_run():
    """Padding of 128 tokens is cheaper than another product: 4 rows x 32 are, 5 rows x 32 are not."""
    assert runs([7, 7, 7]) == [(0, 3, 7, False)]
    assert runs([100, 68, 68, 68, 68]) == [(0, 5, 100, True)]
    assert runs([100, 68, 68, 68, 68, 68]) == [(0, 5, 100, True), (5, 6, 68, False)]
    assert runs([1, 400, 400]) == [(0, 1, 1, False), (1, 3, 400, False)]


def test_rows_lie_in_order_of_length_so_that_runs_are_few(instruct, asked, monkeypatch):
    """Runs as short as these answers ask for: about as few as if all rows were sorted, and no answer changed."""
    lengths = torch.randint(2, 25, (len(asked), 10), generator=torch.Generator().manual_seed(0)).tolist()
    forced = [PromptRequest(one.prefix, one.keys, ends) for one, ends in zip(asked, lengths, strict=True)]
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


@pytest.mark.parametrize("page", [PAGE, 5])
def test_an_operation_for_all_rows_draws_the_same_answers(instruct, asked, expected, monkeypatch, page):
    """What a GPU captures, run without capture: 12 rows are rounded up to what a graph would serve."""
    monkeypatch.setattr(page_allocator, "PAGE", page)
    found = SamplingEngine(instruct, 12, num_slots(12, 10), samples_per_prompt=10).sample(asked, PARAMS)
    assert found == expected


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("number", [5, 9])
def test_pages_that_run_out_change_no_answer(instruct, asked, expected, monkeypatch, number, lag):
    """24 tokens in pages of 5, with enough of them for one long answer, or two, and no foresight: rows give way."""
    gone = []
    preempt = scheduler.Scheduler._preempt
    monkeypatch.setattr(scheduler.Scheduler, "_preempt", lambda loop, row: gone.append(row.drawn) or preempt(loop, row))
    monkeypatch.setattr(page_allocator, "PAGE", 5)
    monkeypatch.setattr(page_allocator, "num_pages", lambda *_: number)
    monkeypatch.setattr(page_allocator.PageAllocator, "suffice_for_another", lambda self, rows: bool(self.free))
    decoder = SamplingEngine(instruct, 12, num_slots(12, 10), samples_per_prompt=10)
    decoder.lag = lag
    assert decoder.sample(asked[:3], PARAMS) == expected[:30]
    assert len(gone) > 10


@pytest.mark.parametrize("number", [11, 30])
def test_with_foresight_pages_do_not_run_out(instruct, asked, expected, monkeypatch, number):
    """Most of these answers fill all of their pages."""
    monkeypatch.setattr(scheduler.Scheduler, "_preempt", lambda *_: pytest.fail("a row gave way"))
    monkeypatch.setattr(page_allocator, "PAGE", 5)
    monkeypatch.setattr(page_allocator, "num_pages", lambda *_: number)
    assert (
        SamplingEngine(instruct, 12, num_slots(12, 10), samples_per_prompt=10).sample(asked[:4], PARAMS)
        == expected[:40]
    )


@pytest.mark.parametrize("lag", [1, 3])
def test_tokens_that_are_read_late_change_no_answer(instruct, asked, expected, lag):
    late = SamplingEngine(instruct, 16, num_slots(16, 10))
    late.lag = lag
    assert late.sample(asked, PARAMS) == expected


@pytest.mark.parametrize("slots", [1, 2])
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


@pytest.mark.parametrize("failing", [1, 4, 40, 90])
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


def out_of_memory_for(monkeypatch, too_large: Callable[[ModelRunner, Tensor], bool]) -> None:
    """A prompt for which `too_large(steps, prefix)` holds never fits."""
    prefill = ModelRunner.prefill

    def call(self, prefix_PD, slot):
        if too_large(self, prefix_PD):
            raise torch.OutOfMemoryError("no room")
        return prefill(self, prefix_PD, slot)

    monkeypatch.setattr(ModelRunner, "prefill", call)


@pytest.mark.parametrize("number", [0, 3, 7])
def test_a_question_that_exceeds_the_memory_alone_costs_the_others_nothing(
    instruct, asked, expected, monkeypatch, number
):
    giant = asked[number].prefix()
    out_of_memory_for(monkeypatch, lambda steps, prefix_PD: prefix_PD is giant)
    decoder = SamplingEngine(instruct, 16, num_slots(16, 10))
    found = decoder.sample(asked, PARAMS)
    assert [answer for answer in found if answer.request != number] == [
        answer for answer in expected if answer.request != number
    ]
    left = [answer for answer in found if answer.request == number]
    assert [(a.sample_index, a.finish_reason, a.token_ids) for a in left] == [(i, TOO_LARGE, []) for i in range(10)]
    # 16 rows, 8, 4, 2, 1
    assert decoder.retries == 5


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
