"""What would make the host wait for a GPU, which no capture of a graph survives; seen on CPU, where nothing waits."""

from collections.abc import Callable

import pytest
import torch
from prompts import EmbeddedPrompt, prefix
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data_engine.models.base import VisionLanguageModel
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import paged_attention
from data_engine.sampling.native.kv_cache import KVCache
from data_engine.sampling.native.model_runner import ModelRunner, ToRun
from data_engine.sampling.native.packing import Packing
from data_engine.sampling.native.page_allocator import pages_of
from data_engine.sampling.native.page_pool import PagePool
from data_engine.sampling.native.step_graphs import Captures
from data_engine_kernels import RowIndex, members_of
from data_engine_kernels.work_list import Division

aten = torch.ops.aten
# Their results, or the shapes of these, are read on the host. In inference mode, Tensor.item arrives whole.
READ = {
    aten._local_scalar_dense,
    aten.item,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.equal,
    aten.is_nonzero,
}


class Waits(TorchDispatchMode):
    """The operations that would wait for the device, as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kind = function.overloadpacket
        # A number that is written to places that a tensor names, or to one place, is copied there from the host; one
        # that is written to a slice is not.
        written = kind in (aten.index_put_, aten._index_put_impl_) and args[2].dim() == 0
        written |= kind is aten.copy_ and args[0].dim() == args[1].dim() == 0
        if kind in READ or written:
            self.found.append(str(kind))
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=["instruct", "omni_instruct"])
def model(request) -> VisionLanguageModel:
    return request.getfixturevalue(request.param)


@pytest.fixture
def prompts(model, golden_rows, golden_images) -> list[EmbeddedPrompt]:
    pixels = [model.pixels(image, True, 64) for image in golden_images[:2]]
    questions = [golden_rows[4 * number]["question"] for number in range(2)]
    return [EmbeddedPrompt(prefix(model, *both)) for both in zip(pixels, questions, strict=True)]


def pages(prompt: EmbeddedPrompt) -> list[int]:
    """Any pages for it but those of the rows."""
    return list(range(5, 5 + pages_of(prompt.length)))


@pytest.fixture
def made(model, prompts, monkeypatch) -> Callable[[SamplingParams], ModelRunner]:
    """Steps of a GPU with one prompt in slot 1 and answers in rows 0 and 1, but for the kernel, which is CUDA's own."""
    # Its eager formula reads lengths.
    monkeypatch.setattr(paged_attention, "grouped_decode_attention", lambda query, *rest: torch.zeros_like(query))

    def make(params: SamplingParams) -> ModelRunner:
        caches = KVCache(model, 32, 4, PagePool(model, 32, 4, 200, 20))
        found = ModelRunner(model, caches, params, paged_attention.PagedRows(10, Captures(None)))
        found.prefill(prompts[0], 1, pages(prompts[0]))
        found.first([0, 1], [3, 4], [1, 1], [7, 7])
        found.give_pages([0, 1], [0, 0], [1, 2])
        return found

    with torch.inference_mode():
        yield make


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0),
        SamplingParams(top_k=0, top_p=0.9),
        SamplingParams(top_p=0.9, repetition_penalty=1.3),
        SamplingParams(forced_lengths=True),
    ],
    ids=str,
)
def test_nothing_in_a_step_waits(made, params, monkeypatch):
    step = made(params)
    monkeypatch.setattr(torch, "tensor", lambda *a, **options: pytest.fail("a tensor is made of the host's numbers"))
    with Waits() as waits:
        step.next([None, None])
    assert waits.found == []


def test_nothing_waits_for_the_list_of_parts():
    """Which the kernel makes, and its eager formula does not."""
    slots, lengths = torch.tensor([0, -1, 1, 0]), torch.tensor([3, 0, 300, 7])
    by = Division(split=256, own=128, prefix_parts=4, own_parts=3, shared=1, queries=16, tiles=1)
    with Waits() as waits:
        members = members_of(slots, 2, 3)
        rows = RowIndex(slots, lengths, lengths[:2], members, torch.zeros(4, 3), torch.zeros(2, 8))
        rows.work(by)
    assert waits.found == []


def test_nothing_in_a_refill_waits(made, prompts):
    """What it sends goes from pinned memory, see models.device.sent."""
    step = made(SamplingParams(repetition_penalty=1.3))
    with Waits() as waits:
        step.prefill(prompts[1], 2, pages(prompts[1]))
        step.first([2, 3], [5, 6], [2, 2], [0, 0])
        step.give_pages([2, 3], [0, 0], [3, 4])
        step.move(3, 0, 1)
        step.clean([0, 5])
    assert waits.found == []


@torch.inference_mode()
def test_prompts_that_run_in_one_pass_wait_only_where_a_number_of_rows_is_new(model, prompts):
    """Pages beside which there is room for both prompts in a pass."""
    caches = KVCache(model, 4, 4, PagePool(model, 4, 4, 200, 400))
    placement = paged_attention.PagedRows(10, Captures(None))
    runner = ModelRunner(model, caches, SamplingParams(), placement, Packing(model))
    waiting = [ToRun(prompt, slot, [1 + 2 * slot, 2 + 2 * slot]) for slot, prompt in enumerate(prompts)]
    waiting = [one._replace(pages=one.pages[: pages_of(one.prompt.length)]) for one in waiting]
    with Waits() as first:
        runner.prefill_all(waiting)
    with Waits() as again:
        runner.prefill_all(waiting)
    assert first.found
    assert again.found == []


def test_numbers_that_are_read_in_inference_mode_are_seen():
    flags = torch.zeros(4, dtype=torch.bool)
    with torch.inference_mode(), Waits() as waits:
        flags.sum().item()
        bool(flags.any())
        int(flags.sum())
    assert waits.found == ["aten.item", "aten.is_nonzero", "aten.item"]


def test_waits_are_seen():
    places, flags = torch.tensor([1, 2]), torch.zeros(4, dtype=torch.bool)

    def seen(work: Callable[[], object]) -> list[str]:
        with Waits() as waits:
            work()
        return waits.found

    # As operations: `flags[places] = True` is another one from torch 2.15 on, which copies nothing.
    def put(value: Tensor) -> None:
        flags.index_put_((places,), value)

    assert seen(lambda: flags.sum().item()) == ["aten._local_scalar_dense"]
    assert seen(lambda: flags.nonzero()) == ["aten.nonzero"]
    assert seen(lambda: put(torch.tensor(True))) == ["aten.index_put_"]
    assert seen(lambda: flags[0].copy_(torch.tensor(True))) == ["aten.copy_"]
    assert seen(lambda: put(~flags[:2])) == []
    assert seen(lambda: flags.index_fill_(0, places, True)) == seen(lambda: flags[0].fill_(True)) == []
