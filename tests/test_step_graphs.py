"""Steps that are captured, and steps that cannot be: a stand-in for CUDA's capture, on CPU."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from prompts import EmbeddedPrompt, prefix
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import paged_attention, step_graphs
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
            raise RuntimeError(WAIT)
        return function(*args, **(kwargs or {}))


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

    def pool(self) -> tuple[int, int]:
        return 1, 0


class StandIn:
    """What CUDA does of a capture; `fails`: the number of a recording -> what it raises."""

    def __init__(self, fails: dict[int, Exception] | None = None) -> None:
        self.fails, self.pools, self.graphs = fails or {}, [], []

    def warm_up(self, once: Callable[[], None]) -> None:
        once()

    def rehearse(self, once: Callable[[], None]) -> None:
        with RefusingWaits():
            once()

    def record(self, step: Callable[[], Tensor], pool: tuple[int, int] | None) -> tuple[Replayed, Tensor]:
        self.pools.append(pool)
        if len(self.pools) in self.fails:
            raise self.fails[len(self.pools)]
        graph = Replayed(step, torch.empty(0, dtype=torch.long))
        self.graphs.append(graph)
        return graph, graph.drawn


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
    """24 rows: steps of 16 and of 24. The kernel's eager formula reads lengths, which the kernel does not."""
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


def graphs(engine: SamplingEngine) -> dict:
    return engine._runner.placement.graphs


def test_each_size_of_step_is_captured_once_and_draws_what_a_plain_step_does(engine, asked, uncaptured, caplog):
    """32 answers of 12 tokens, 24 at a time."""
    recorder = StandIn()
    captured = engine(recorder)
    for _ in range(2):
        assert captured.sample(asked, PARAMS) == uncaptured
    assert set(graphs(captured)) == {16, 24}
    assert recorder.pools == [None, (1, 0)], "each has memory of its own"
    assert min(graph.replays for graph in recorder.graphs) > 5
    assert warnings_of(caplog) == []


def test_steps_of_a_model_that_waits_for_the_device_run_uncaptured(engine, asked, uncaptured, reads_a_number, caplog):
    """Told once, also where other sampling values need other caches."""
    recorder = StandIn()
    captured = engine(recorder)
    for _ in range(2):
        assert captured.sample(asked, PARAMS) == uncaptured
    captured.sample(asked, replace(PARAMS, top_k=5))
    assert graphs(captured) == {}
    assert recorder.pools == [], "a capture that is sure to fail was begun"
    [told] = warnings_of(caplog)
    assert told.startswith(f"steps of this model are not captured in CUDA graphs, so they take longer: {WAIT} (")
    assert "test_step_graphs.py, line" in told


def test_a_capture_that_fails_ends_those_before_it_too(engine, asked, uncaptured, caplog):
    captured = engine(StandIn({2: RuntimeError("operation not permitted\nCompile with")}))
    for _ in range(2):
        assert captured.sample(asked, PARAMS) == uncaptured
    assert graphs(captured) == {}
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
    assert set(graphs(captured)) == {12}
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
