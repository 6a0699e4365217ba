"""The captured decode step against the plain loop, on a GPU, and steps that cannot be captured."""

import logging

import pytest
import torch
from prompts import EmbeddedPrompt, prefix
from recurrent import with_states

from data_engine import load_model
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import page_pool
from data_engine.sampling.native.page_allocator import PAGE
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.native.step_graphs import CudaRecorder, refusing_waits
from data_engine.sampling.requests import PromptRequest
from data_engine.seeds import seed_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on the machine"),
]


# A GPU that is not the process's current one.
other = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device on the machine")


def asked_of(model, golden_rows, golden_images) -> list[PromptRequest]:
    """Eight questions of different length, ten answers each."""
    found = []
    for number in range(8):
        pixels = model.pixels(golden_images[number], False, 64)
        shared = prefix(model, pixels, golden_rows[4 * number]["question"])
        found.append(PromptRequest(EmbeddedPrompt(shared), [seed_for(0, number, i) for i in range(10)]))
    return found


@pytest.mark.parametrize(
    ("device", "penalty"), [("cuda:0", 1.0), ("cuda:0", 1.3), pytest.param("cuda:1", 1.0, marks=other)]
)
def test_the_captured_step_and_the_plain_loop_draw_the_same_answers(
    goldens, golden_rows, golden_images, device, penalty
):
    model = load_model(None, str(goldens / "llava/instruct"), device=device, dtype="float32")
    params = SamplingParams(1.0, 20, 1.0, penalty, 24)
    asked = asked_of(model, golden_rows, golden_images)
    plain = SamplingEngine(model, 24, 8)
    expected = plain.sample(asked, params)
    assert {answer.finish_reason for answer in expected} == {"stop", "length"}
    captured = SamplingEngine(model, 24, 8, samples_per_prompt=10)
    for _ in range(2):
        assert captured.sample(asked, params) == expected
    _, drawn = captured._runner.placement.captured
    assert len(drawn) == 24


PARAMS = SamplingParams(1.0, 20, 1.0, 1.0, 24)
# What a layer may do, and no capture allows.
WAITS = {
    "a number is read": lambda hidden: hidden.sum().item(),
    "chosen by a number": lambda hidden: bool((hidden > 5).any()),
    "copied to the host": lambda hidden: hidden[0, 0].cpu(),
    "copied from the host": lambda hidden: torch.ones(hidden.shape[-1]).to(hidden.device),
    "a shape depends on data": lambda hidden: hidden.nonzero(),
    "all work is waited for": lambda hidden: torch.cuda.synchronize(),
}


@pytest.fixture(scope="module")
def model(goldens):
    return load_model(None, str(goldens / "llava/instruct"), device="cuda:0", dtype="float32")


@pytest.fixture(params=["float32", "bfloat16"])
def either_model(request, goldens):
    return load_model(None, str(goldens / "llava/instruct"), device="cuda:0", dtype=request.param)


def test_a_step_draws_the_same_captured_or_not(either_model, golden_rows, golden_images):
    """Bit for bit: the same kernels, for the same number of rows."""
    asked = asked_of(either_model, golden_rows, golden_images)
    captured, plain = (SamplingEngine(either_model, 24, 8, samples_per_prompt=10) for _ in range(2))
    plain._captures.why_not = "it is told so"
    assert captured.sample(asked, PARAMS) == plain.sample(asked, PARAMS)
    assert captured._runner.placement.captured is not None
    assert plain._runner.placement.captured is None


def test_once_its_step_is_captured_the_host_waits_for_copies_of_tokens_alone(model, golden_rows, golden_images):
    """Prompts and refills included; a wait for an event is none that torch tells."""
    asked = asked_of(model, golden_rows, golden_images)
    engine = SamplingEngine(model, 24, 8, samples_per_prompt=10)
    expected = engine.sample(asked, PARAMS)
    with refusing_waits():
        assert engine.sample(asked, PARAMS) == expected


@pytest.mark.parametrize("rehearsed", [True, False])
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_step_that_cannot_be_captured_runs_uncaptured(
    model, golden_rows, golden_images, wait, rehearsed, monkeypatch, caplog
):
    """Found in the rehearsal, or only by the capture, which CUDA then calls invalid; later captures are well."""
    asked = asked_of(model, golden_rows, golden_images)
    expected = SamplingEngine(model, 24, 8, samples_per_prompt=10).sample(asked, PARAMS)
    if not rehearsed:
        monkeypatch.setattr(CudaRecorder, "rehearse", CudaRecorder.warm_up)
    engine = SamplingEngine(model, 24, 8, samples_per_prompt=10)
    hook = model.decoder.layers[0].register_forward_pre_hook(lambda module, given: (wait(given[0]), None)[1])
    try:
        for _ in range(2):
            assert engine.sample(asked, PARAMS) == expected
    finally:
        hook.remove()
    assert engine._runner.placement.captured is None
    [told] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told.startswith("steps of this model are not captured in CUDA graphs")
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.cuda.empty_cache()
    again = SamplingEngine(model, 24, 8, samples_per_prompt=10)
    assert again.sample(asked, PARAMS) == expected
    assert again._runner.placement.captured is not None


@pytest.mark.parametrize("wait", [None, *WAITS.values()], ids=["no wait", *WAITS])
def test_a_recurrent_model_is_captured_behind_two_steps_of_the_run(
    model, golden_rows, golden_images, wait, monkeypatch, caplog
):
    """None can be undone. Where the second waits for the device, none is captured; it has run all the same."""
    with_states(model, monkeypatch)
    asked = asked_of(model, golden_rows, golden_images)
    plain, engine = (SamplingEngine(model, 24, 8, samples_per_prompt=10) for _ in range(2))
    plain._captures.why_not = "it is told so"
    expected = plain.sample(asked, PARAMS)
    hook = model.decoder.layers[0].register_forward_pre_hook(lambda module, given: wait and (wait(given[0]), None)[1])
    try:
        for _ in range(2):
            assert engine.sample(asked, PARAMS) == expected
    finally:
        hook.remove()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (engine._runner.placement.captured is None) == bool(wait) == bool(told)
    assert all("test_graphs.py" in one or "not captured in CUDA graphs" in one for one in told)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.cuda.get_sync_debug_mode() == 0


def test_a_prompt_that_finds_no_room_in_the_table_of_prefixes_is_captured_anew(
    model, golden_rows, golden_images, monkeypatch
):
    """In the middle of a queue; the graph before it holds the address of the table that is left behind."""
    short, pixels = asked_of(model, golden_rows, golden_images), model.pixels(golden_images[0], False, 64)
    long = EmbeddedPrompt(prefix(model, pixels, golden_rows[0]["question"] * 12))
    assert long.length > PAGE > short[0].prompt.length
    asked = [*short[:3], PromptRequest(long, [seed_for(0, 99, i) for i in range(10)]), *short[3:]]
    plain = SamplingEngine(model, 24, 8, samples_per_prompt=10)
    plain._captures.why_not = "it is told so"
    expected = plain.sample(asked, PARAMS)
    monkeypatch.setattr(page_pool, "FIRST_ROOM", PAGE)
    engine = SamplingEngine(model, 24, 8, samples_per_prompt=10)
    assert engine.sample(asked, PARAMS) == expected
    assert engine._runner.placement.captured is not None


def test_memory_that_runs_out_in_a_capture_halves_the_rows(model, golden_rows, golden_images):
    asked = asked_of(model, golden_rows, golden_images)
    expected = SamplingEngine(model, 24, 8, samples_per_prompt=10).sample(asked, PARAMS)
    engine = SamplingEngine(model, 24, 8, samples_per_prompt=10)

    def too_much(module, given):
        if torch.cuda.is_current_stream_capturing() and engine._runner.caches.num_rows == 24:
            torch.empty(1 << 42, dtype=torch.uint8, device="cuda:0")

    hook = model.decoder.layers[0].register_forward_pre_hook(too_much)
    try:
        assert engine.sample(asked, PARAMS) == expected
    finally:
        hook.remove()
    assert engine.retries == 1
    _, drawn = engine._runner.placement.captured
    assert len(drawn) == 12


def test_an_answer_is_the_same_whatever_runs_beside_it(either_model, golden_rows, golden_images):
    """By captured steps of 24 rows: among all, alone, in another order, among others."""
    asked = asked_of(either_model, golden_rows, golden_images)

    def sampled(requests: list[PromptRequest]) -> dict[int, list[int]]:
        """Ids, by the answer's random-number key."""
        found = SamplingEngine(either_model, 24, 8, samples_per_prompt=10).sample(requests, PARAMS)
        return {requests[one.request].keys[one.sample_index]: one.token_ids for one in found}

    expected = sampled(asked)
    for others in (asked[2:3], asked[::-1], [asked[number] for number in (6, 2, 0, 5)]):
        assert sampled(others).items() <= expected.items()
