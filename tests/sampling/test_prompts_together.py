"""Several prompts in one pass of the decoder leave the bits that each leaves alone, or do not run in one pass."""

import weakref

import pytest
import torch
from changed_layers import by_number, by_place, changed
from prompts import EmbeddedPrompt, assert_same_prefix, even, logits_noted, one_a_pass, prefix
from torch import Tensor

from data_engine.models.base import VisionLanguageModel
from data_engine.models.layers import noting
from data_engine.models.layers.attention import LayerCall
from data_engine.models.layers.prefix import Prefix, run_prefix, run_prefixes
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.kv_cache import KVCache
from data_engine.sampling.native.model_runner import ModelRunner, ToRun
from data_engine.sampling.native.packing import Packing, rows_for
from data_engine.sampling.native.page_allocator import pages_of
from data_engine.sampling.native.page_pool import PagePool
from data_engine.sampling.native.paged_attention import PagedRows
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.native.step_graphs import Captures
from data_engine.sampling.requests import Completion, PromptRequest
from data_engine.seeds import seed_for

K, ROWS = 2, 16
PARAMS = SamplingParams(temperature=1.0, top_k=20, max_new_tokens=6)


def embedded(model: VisionLanguageModel, rows: list[dict], images: list) -> list[EmbeddedPrompt]:
    """The eight questions of the goldens."""
    return [
        EmbeddedPrompt(even(prefix(model, model.pixels(image, False, 64), row["question"])))
        for image, row in zip(images, rows[::4], strict=True)
    ]


@pytest.fixture(params=["instruct", "omni_instruct"])
def model(request) -> VisionLanguageModel:
    return request.getfixturevalue(request.param)


@pytest.fixture
def prompts(model, golden_rows, golden_images) -> list[EmbeddedPrompt]:
    return embedded(model, golden_rows, golden_images)


@pytest.fixture(scope="module")
def llava_prompts(instruct, golden_rows, golden_images) -> list[EmbeddedPrompt]:
    found = embedded(instruct, golden_rows, golden_images)
    assert [prompt.length for prompt in found] == [66, 72, 66, 82, 66, 88, 62, 62]
    return found


@pytest.fixture
def passes(monkeypatch) -> list[list[int]]:
    """The lengths of the prompts of each pass of the LLaVA model."""
    found = []

    def watch(model: VisionLanguageModel) -> list[list[int]]:
        alone, together = model.run_prompt, model.run_prompts
        monkeypatch.setattr(model, "run_prompt", lambda one: found.append([one.length]) or alone(one))
        monkeypatch.setattr(
            model, "run_prompts", lambda all, rows: found.append([one.length for one in all]) or together(all, rows)
        )
        return found

    return watch


def run_all(model: VisionLanguageModel, prompts: list[EmbeddedPrompt]) -> list[Prefix]:
    return run_prefixes(model, prompts, rows_for([prompt.length for prompt in prompts]))


def test_prompts_in_one_pass_leave_what_each_leaves_alone(model, prompts):
    for first, last in ((0, 4), (4, 8), (3, 5)):
        each = prompts[first:last]
        for found, prompt in zip(run_all(model, each), each, strict=True):
            expected = run_prefix(model, prompt)
            assert_same_prefix(found, expected)
            assert found.layers.keys() == {0, 1}
            logits = [model.head.logits(one.end.hidden_D[None]) for one in (found, expected)]
            assert torch.equal(*logits)


def test_what_is_left_of_a_prompt_keeps_no_other_alive(model, prompts):
    for found in run_all(model, prompts[:3]):
        kept = [found.end.hidden_D, *(part for noted in found.layers.values() for part in noted[:2])]
        assert [part.untyped_storage().nbytes() for part in kept] == [part.nbytes for part in kept]


def test_a_prompt_of_numbers_that_are_none_breaks_no_other(model, prompts):
    broken = EmbeddedPrompt(torch.full_like(prompts[0].embeds_PD, torch.nan))
    first, second, third = run_all(model, [prompts[0], broken, prompts[1]])
    assert second.end.hidden_D.isnan().all()
    assert_same_prefix(first, run_prefix(model, prompts[0]))
    assert_same_prefix(third, run_prefix(model, prompts[1]))


def test_each_prompt_attends_by_the_call_that_it_makes_alone(model, prompts, monkeypatch):
    calls, plain = [], noting.plain

    def noted(call: LayerCall) -> Tensor:
        parts = [(part.shape, part.stride()) for part in (call.query, call.key, call.value)]
        calls.append((call.layer, parts, call.mask, call.scale, sorted(call.options)))
        return plain(call)

    monkeypatch.setattr(noting, "plain", noted)
    for prompt in prompts[:3]:
        run_prefix(model, prompt)
    alone = calls.copy()
    calls.clear()
    run_all(model, prompts[:3])
    # Prompt by prompt, and layer by layer.
    assert calls == [alone[2 * prompt + layer] for layer in range(2) for prompt in range(3)]
    assert len(alone) == 6


def test_on_this_machine_prompts_of_the_goldens_agree(model, prompts):
    """Else the tests of whole answers would see one prompt at a time."""
    assert Packing(model).agree([prompt.length for prompt in prompts[:4]])


def answers(
    model: VisionLanguageModel,
    prompts: list[EmbeddedPrompt],
    constant: bool = True,
    pages: int = 200,
    rows: int = ROWS,
) -> tuple[list[Completion], dict[tuple[int, int], Tensor], SamplingEngine]:
    """Those of all prompts; the logits of each of their tokens, by key and place; the engine."""
    engine = SamplingEngine(model, rows, ROWS, K if constant else None, pages)
    requests = [
        PromptRequest(prompt, [seed_for(0, number, index) for index in range(K)])
        for number, prompt in enumerate(prompts)
    ]
    with logits_noted() as logits:
        return engine.sample(requests, PARAMS), logits, engine


def one_at_a_time(model, prompts, **options) -> tuple[list[Completion], dict[tuple[int, int], Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        one_a_pass(patch)
        return answers(model, prompts, **options)[:2]


def differing(one: dict[tuple[int, int], Tensor], other: dict[tuple[int, int], Tensor]) -> list[tuple[int, int]]:
    assert one.keys() == other.keys()
    assert len(one) > 60
    return [at for at in one if not torch.equal(one[at], other[at])]


def test_answers_are_those_of_prompts_that_run_one_at_a_time(model, prompts, passes):
    """Eight questions of two answers fill 16 rows at once."""
    expected, their_logits = one_at_a_time(model, prompts)
    lengths, ran = [prompt.length for prompt in prompts], passes(model)
    found, logits, _ = answers(model, prompts)
    assert found == expected
    assert differing(logits, their_logits) == []
    assert ran == [lengths[:4], lengths[4:]]


def test_questions_that_follow_one_by_one_run_alone(instruct, llava_prompts, passes):
    """With room for one answer's worth of pages beside a prompt, the next question begins when another has ended."""
    ran = passes(instruct)
    expected, _ = one_at_a_time(instruct, llava_prompts)
    ran.clear()
    assert answers(instruct, llava_prompts, pages=4)[0] == expected
    assert [length for each in ran for length in each] == [prompt.length for prompt in llava_prompts]
    assert max(map(len, ran)) == 1


def test_prompts_of_the_next_questions_run_in_a_pass_that_runs_anyway(instruct, llava_prompts, passes):
    """Two rows, both of the first question, and pages for all: three more prompts run with the first one."""
    expected, their_logits = one_at_a_time(instruct, llava_prompts, rows=2)
    ran = passes(instruct)
    found, logits, _ = answers(instruct, llava_prompts, rows=2)
    assert ran == [[66, 72, 66, 82], [66, 88, 62, 62]]
    assert found == expected
    assert differing(logits, their_logits) == []


@pytest.mark.parametrize("change", [by_number, by_place])
def test_a_decoder_whose_bits_depend_on_the_other_rows_runs_prompts_one_at_a_time(
    instruct, llava_prompts, passes, monkeypatch, change
):
    with changed(instruct, change):
        expected, their_logits = one_at_a_time(instruct, llava_prompts)
        ran = passes(instruct)
        found, logits, _ = answers(instruct, llava_prompts)
        # Together, the last two have as many rows as each alone: 128.
        assert ran == [[66], [72], [66], [82], [66], [88], [62, 62]]
        assert found == expected
        assert differing(logits, their_logits) == []
        # Without the measurement, bits would be others.
        monkeypatch.setattr(Packing, "agree", lambda *_: True)
        assert differing(answers(instruct, llava_prompts)[1], their_logits)


def test_the_path_of_a_cpu_runs_prompts_one_at_a_time(instruct, llava_prompts, passes):
    ran = passes(instruct)
    answers(instruct, llava_prompts, constant=False)
    assert ran == [[prompt.length] for prompt in llava_prompts]


def test_memory_that_a_pass_of_several_prompts_does_not_have_takes_no_rows_away(
    instruct, llava_prompts, passes, monkeypatch
):
    """256 rows are too many: so are 384, and pairs of 128 fit."""
    expected, their_logits = one_at_a_time(instruct, llava_prompts)
    ran, tried, together = passes(instruct), [], instruct.run_prompts

    def full(prompts: list[EmbeddedPrompt], num_rows: int) -> list:
        tried.append(num_rows)
        if num_rows > 128:
            raise torch.OutOfMemoryError("no room")
        return together(prompts, num_rows)

    monkeypatch.setattr(instruct, "run_prompts", full)
    found, logits, engine = answers(instruct, llava_prompts)
    assert (found, engine.retries) == (expected, 0)
    assert differing(logits, their_logits) == []
    assert tried == [384, 256, *[128] * 7]
    # 62 + 62 tokens are the one pair of no more than 128.
    assert ran == [[66], [72], [66], [82], [66], [88], [62, 62]]


def test_memory_that_runs_out_for_a_prompt_alone_halves_the_rows_and_loses_no_answer(
    instruct, llava_prompts, monkeypatch
):
    """The second of two passes of four prompts does not fit, nor do fewer, nor its first prompt alone, once."""
    expected, _ = one_at_a_time(instruct, llava_prompts)
    together, calls = instruct.run_prompts, []

    def fails(prompts: list[EmbeddedPrompt], num_rows: int) -> list:
        calls.append(len(prompts))
        if calls in ([4, 4], [4, 4, 3], [4, 4, 3, 1]):
            raise torch.OutOfMemoryError("no room")
        return together(prompts, num_rows)

    monkeypatch.setattr(instruct, "run_prompts", fails)
    found, _, engine = answers(instruct, llava_prompts)
    assert calls[:4] == [4, 4, 3, 1]
    assert engine.retries == 1
    assert found == expected


def test_an_error_that_is_not_about_memory_is_raised(instruct, llava_prompts, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(instruct, "run_prompts", fails)
    with pytest.raises(RuntimeError, match="something else"):
        answers(instruct, llava_prompts)


@torch.inference_mode()
def test_each_prompt_is_kept_in_its_own_slot_and_pages(model, prompts):
    """Pages in any order, two of those of prompts of more than 128 tokens."""
    wanted = [ToRun(prompt, slot, ()) for slot, prompt in zip((3, 0, 4, 1, 2), prompts, strict=False)]
    free = list(range(20, 0, -1))
    wanted = [one._replace(pages=[free.pop(0) for _ in range(pages_of(one.prompt.length))]) for one in wanted]
    kept = []
    for packing in (None, Packing(model)):
        caches = KVCache(model, 4, 5, PagePool(model, 4, 5, 20, 100))
        runner = ModelRunner(model, caches, PARAMS, PagedRows(K, Captures(None)), packing)
        runner.prefill_all(wanted)
        kept.append([
            caches.prefix_lengths_Q, caches.next_positions_Q, caches.first_logits_QV, caches.kept.prefix_pages_QB,
            *caches.kept.keys, *caches.kept.values,
        ])  # fmt: skip
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))
    assert kept[0][0].tolist() == [prompts[at].length for at in (1, 3, 4, 0, 2)]


@torch.inference_mode()
def test_what_a_pass_leaves_is_gone_before_the_next_one_runs(instruct, llava_prompts, monkeypatch):
    left, run = [], Packing.run

    def watched(packing: Packing, *given) -> list[Prefix]:
        assert [one() for one in left] == [None] * len(left)
        found = run(packing, *given)
        left.extend(map(weakref.ref, found))
        return found

    monkeypatch.setattr(Packing, "run", watched)
    caches = KVCache(instruct, 4, 8, PagePool(instruct, 4, 8, 20, 200))
    runner = ModelRunner(instruct, caches, PARAMS, PagedRows(K, Captures(None)), Packing(instruct))
    runner.prefill_all([ToRun(prompt, slot, [1 + slot]) for slot, prompt in enumerate(llava_prompts)])
    assert len(left) == 8
