"""Steps that are captured, and steps that cannot be: a stand-in for CUDA's capture, on CPU."""

import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from prompts import EmbeddedPrompt, prefix
from recurrent import with_states
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import page_allocator, page_pool, paged_attention, step_graphs
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import Completion, PromptRequest
from data_engine.seeds import seed_for

PARAMS = SamplingParams(1.0, 20, 1.0, 1.0, 12)
WAIT = "called a synchronizing CUDA operation"


class RefusingWaits(TorchDispatchMode):
    """As torch.cuda.set_sync_debug_mode("error")."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # In inference mode, Tensor.item arrives whole.
        if function.overloadpacket in (torch.ops.aten.item, torch.ops.aten.is_nonzero):
            self.waits()
        return function(*args, **(kwargs or {}))

    def waits(self) -> None:
        raise RuntimeError(WAIT)


class NotingWaits(RefusingWaits):
    """As torch.cuda.set_sync_debug_mode("warn")."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def waits(self) -> None:
        self.told.append(f"{WAIT} (test_step_graphs.py, line 1)")


@dataclass
class Replayed:
    """A graph that runs the step again."""

    step: Callable[[], Tensor]
    drawn: Tensor
    replays: int = 0

    def replay(self) -> None:
        found = self.step()
        self.drawn.resize_(found.shape).copy_(found)
        self.replays += 1


class StandIn:
    """What CUDA does of a capture; `fails`: the number of a recording -> what it raises."""

    def __init__(self, fails: dict[int, Exception] | None = None) -> None:
        self.fails, self.recordings, self.graphs = fails or {}, 0, []

    def warm_up(self, once: Callable[[], None]) -> None:
        once()

    def rehearse(self, once: Callable[[], None]) -> None:
        with RefusingWaits():
            once()

    def watch(self, once: Callable[[], None]) -> str | None:
        with NotingWaits() as noted:
            once()
        return noted.told[0] if noted.told else None

    def record(self, step: Callable[[], Tensor]) -> tuple[Replayed, Tensor]:
        self.recordings += 1
        if self.recordings in self.fails:
            raise self.fails[self.recordings]
        graph = Replayed(step, torch.empty(0, dtype=torch.long))
        self.graphs.append(graph)
        return graph, graph.drawn


@pytest.fixture(params=["attention alone", "states"], autouse=True)
def model(request, instruct, monkeypatch):
    """One whose steps can be undone, and one whose steps move a recurrent state on."""
    if request.param == "states":
        with_states(instruct, monkeypatch)
    return instruct


@pytest.fixture
def asked(instruct, golden_rows, golden_images) -> list[PromptRequest]:
    """Four questions, eight answers each."""
    pixels = [instruct.pixels(image, False, 64) for image in golden_images[:4]]
    prompts = [EmbeddedPrompt(prefix(instruct, one, golden_rows[4 * n]["question"])) for n, one in enumerate(pixels)]
    return [PromptRequest(one, [seed_for(0, n, i) for i in range(8)]) for n, one in enumerate(prompts)]


@pytest.fixture
def uncaptured(instruct, asked) -> list[Completion]:
    return SamplingEngine(instruct, 24, 4, samples_per_prompt=8).sample(asked, PARAMS)


@pytest.fixture
def engine(instruct, monkeypatch) -> Callable[[StandIn], SamplingEngine]:
    """24 rows. The kernel's eager formula reads lengths, which the kernel does not."""
    formula = paged_attention.grouped_decode_attention

    def kernel(*given: object) -> Tensor:
        with _disable_current_modes():
            return formula(*given)

    monkeypatch.setattr(paged_attention, "grouped_decode_attention", kernel)

    def make(recorder: StandIn) -> SamplingEngine:
        monkeypatch.setattr(step_graphs.Captures, "on", lambda device: step_graphs.Captures(recorder))
        return SamplingEngine(instruct, 24, 4, samples_per_prompt=8)

    return make


@pytest.fixture(
    params=[lambda hidden: hidden.sum().item(), lambda hidden: bool((hidden > 5).any())], ids=["read", "chosen"]
)
def reads_a_number(request, instruct):
    """A layer of the decoder reads a number of the device, or chooses by one."""
    hook = instruct.decoder.layers[0].register_forward_pre_hook(
        lambda module, given: (request.param(given[0]), None)[1]
    )
    yield
    hook.remove()


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def is_captured(engine: SamplingEngine) -> bool:
    return engine._runner.placement.captured is not None


def test_one_graph_serves_every_step_and_draws_what_a_plain_step_does(engine, asked, uncaptured, caplog):
    """32 answers of 12 tokens, 24 at a time: 24 rows at first, and then 8."""
    recorder = StandIn()
    captured = engine(recorder)
    for _ in range(2):
        assert captured.sample(asked, PARAMS) == uncaptured
    assert is_captured(captured)
    [graph] = recorder.graphs
    assert graph.replays > 25
    assert len(graph.drawn) == 24
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("model", ["states"], indirect=True)
def test_no_step_of_a_recurrent_model_runs_that_is_not_of_the_run(engine, asked, uncaptured, model, monkeypatch):
    """Each moves the states on: two by themselves, all others by the graph."""
    run, calls = model.run_answers, []
    monkeypatch.setattr(model, "run_answers", lambda *given: calls.append(1) or run(*given))
    assert SamplingEngine(model, 24, 4, samples_per_prompt=8).sample(asked, PARAMS) == uncaptured
    expected, recorder = len(calls), StandIn()
    calls.clear()
    assert engine(recorder).sample(asked, PARAMS) == uncaptured
    [graph] = recorder.graphs
    assert len(calls) == expected == graph.replays + 2


def test_a_longer_prompt_takes_the_graph_and_the_pool_that_are_there(engine, asked, uncaptured):
    """Twice as long as any before it; its pages are its own."""
    recorder = StandIn()
    captured = engine(recorder)
    assert captured.sample(asked, PARAMS) == uncaptured
    pool = captured._runner.caches.kept
    before = [cache.data_ptr() for cache in pool.keys + pool.values]
    longest = max((one.prompt.embeds_PD for one in asked), key=len)
    giant = EmbeddedPrompt(torch.cat([longest, longest]))
    again = captured.sample([asked[0], PromptRequest(giant, asked[1].keys), *asked[2:]], PARAMS)
    assert [one for one in again if one.request != 1] == [one for one in uncaptured if one.request != 1]
    assert recorder.recordings == 1
    assert [cache.data_ptr() for cache in pool.keys + pool.values] == before
    assert captured._runner.caches.kept is pool


def test_a_prompt_for_which_the_table_grows_is_captured_again(engine, asked, uncaptured, monkeypatch):
    """With room for prompts of one page at first."""
    monkeypatch.setattr(page_pool, "FIRST_ROOM", 1)
    monkeypatch.setattr(page_allocator, "PAGE", 16)
    recorder = StandIn()
    captured = engine(recorder)
    assert captured.sample(asked, PARAMS) == uncaptured
    assert captured._runner.caches.kept.prefix_pages_QB.shape[1] > 1
    assert 1 <= recorder.recordings <= 4
    assert is_captured(captured)


def test_a_shorter_limit_takes_the_graph_that_is_there_and_other_values_do_not(engine, asked, uncaptured):
    recorder = StandIn()
    captured = engine(recorder)
    assert captured.sample(asked, PARAMS) == uncaptured
    shorter = captured.sample(asked, replace(PARAMS, max_new_tokens=5))
    assert [found.token_ids for found in shorter] == [found.token_ids[:5] for found in uncaptured]
    assert captured.sample(asked, PARAMS) == uncaptured
    assert recorder.recordings == 1
    for number, values in enumerate((replace(PARAMS, max_new_tokens=14), replace(PARAMS, top_k=5)), start=2):
        captured.sample(asked, values)
        assert recorder.recordings == number


def test_steps_of_a_model_that_waits_for_the_device_run_uncaptured(engine, asked, uncaptured, reads_a_number, caplog):
    """Told once, also where other sampling values need other caches."""
    recorder = StandIn()
    captured = engine(recorder)
    for _ in range(2):
        assert captured.sample(asked, PARAMS) == uncaptured
    captured.sample(asked, replace(PARAMS, top_k=5))
    assert not is_captured(captured)
    assert recorder.recordings == 0, "a capture that is sure to fail was begun"
    [told] = warnings_of(caplog)
    assert told.startswith(f"steps of this model are not captured in CUDA graphs, so they take longer: {WAIT} (")
    assert "test_step_graphs.py, line" in told


def test_after_a_capture_that_fails_steps_run_as_they_are(engine, asked, uncaptured, caplog):
    recorder = StandIn({1: RuntimeError("operation not permitted\nCompile with")})
    captured = engine(recorder)
    for _ in range(2):
        assert captured.sample(asked, PARAMS) == uncaptured
    captured.sample(asked, replace(PARAMS, top_k=5))
    assert not is_captured(captured)
    assert recorder.recordings == 1
    [told] = warnings_of(caplog)
    assert "operation not permitted (test_step_graphs.py, line" in told


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling")]
)
def test_memory_that_runs_out_in_a_capture_halves_the_rows(engine, asked, uncaptured, error, caplog):
    """The next capture, with half the rows, is well."""
    captured = engine(StandIn({1: error}))
    assert captured.sample(asked, PARAMS) == uncaptured
    assert captured.retries == 1
    assert is_captured(captured)
    assert captured._runner.caches.num_rows == 12
    [told] = warnings_of(caplog)
    assert told.startswith("out of memory")


def test_what_a_step_raises_uncaptured_too_is_not_taken_for_a_capture_that_fails(engine, asked, monkeypatch):
    def broken(*given: object) -> Tensor:
        raise RuntimeError("the kernel is broken")

    captured = engine(StandIn())
    monkeypatch.setattr(paged_attention, "grouped_decode_attention", broken)
    with pytest.raises(RuntimeError, match="the kernel is broken"):
        captured.sample(asked, PARAMS)
    assert captured._captures.why_not is None


def test_where_the_host_waits_is_noted_and_other_warnings_go_on(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def watched() -> list[str]:
        with step_graphs.noting_waits() as told:
            warnings.warn("another", stacklevel=1)
            warnings.warn(f"{WAIT} (Triggered internally at CUDAFunctions.cpp:100.)", stacklevel=1)
        return told

    with pytest.warns(UserWarning, match="another") as others:
        [told] = watched()
    assert len(others) == 1
    assert re.fullmatch(rf"{WAIT} \(test_step_graphs.py, line \d+\)", told)
    assert modes == ["warn", 0]
