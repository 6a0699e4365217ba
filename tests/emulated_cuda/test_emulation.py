"""The emulated GPU refuses what a GPU refuses, and gives what it gives: else nothing that runs on it is shown.

Run by make test-emulated-gpu, in a process that has the device.
"""

import warnings

import pytest
import torch

from emulated_cuda.memory import Race

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def emulated():
    if torch.cuda.get_device_name() != "Emulated GPU":
        pytest.skip("no emulated GPU: make test-emulated-gpu")


def on_device(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, device="cuda")


def captured(step) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    graph = torch.cuda.CUDAGraph()
    # A capture that fails leaves its own stream the current one.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        made = step()
    return graph, made


@pytest.mark.parametrize(
    "meet",
    [
        lambda one, other: one + other,
        lambda one, other: torch.cat([one, other]),
        lambda one, other: one @ other,
        lambda one, other: one.index_select(0, other.long()),
        lambda one, other: torch.where(one > 0, one, other),
        lambda one, other: one.masked_fill(other > 0, 1.0),
    ],
)
def test_tensors_of_host_and_device_do_not_meet(meet):
    with pytest.raises(RuntimeError, match="same device"):
        meet(on_device(1.0, 2.0), torch.tensor([0.0, 1.0]))


def test_a_single_number_of_the_host_goes_along():
    one = on_device(1.0, 2.0)
    assert (one + torch.tensor(1.0)).tolist() == [2.0, 3.0]
    assert torch.where(one > 1, one, torch.tensor(7.0)).tolist() == [7.0, 2.0]
    with pytest.raises(TypeError, match="can't convert"):
        one.numpy()


WAITS = {
    "item": lambda one: one[0].item(),
    "bool": lambda one: bool((one > 5).any()),
    "tolist": lambda one: one.tolist(),
    "cpu": lambda one: one.cpu(),
    "nonzero": lambda one: one.nonzero(),
    "a mask": lambda one: one[one > 0],
    "numbers by a mask": lambda one: one.__setitem__(one > 0, on_device(1.0, 1.0)),
    "places of the host": lambda one: one[[1, 0]],
    "one number set": lambda one: one.__setitem__(0, 3.0),
    "a list": lambda one: torch.tensor([1.0], device="cuda"),
    "copied from pageable memory": lambda one: torch.ones(2).to("cuda", non_blocking=True),
    "unique": lambda one: one.unique(),
    "repeats that are not summed": lambda one: one.repeat_interleave(one.long()),
    "synchronize": lambda one: torch.cuda.synchronize(),
}
NO_WAITS = {
    "arithmetic": lambda one: (one * 2).sum(),
    "one number by a mask": lambda one: one.__setitem__(one > 0, 1.0),
    "rows set": lambda one: one.__setitem__(slice(1), 3.0),
    "copied from pinned memory": lambda one: torch.ones(2).pin_memory().to("cuda", non_blocking=True),
    "copied without waiting": lambda one: one.to("cpu", non_blocking=True),
    "repeats that are": lambda one: one.repeat_interleave(torch.ones_like(one).long(), output_size=2),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_what_waits_is_told_and_refused_in_a_capture(wait):
    one = on_device(1.0, 2.0)
    before = torch.cuda.get_sync_debug_mode()
    try:
        if wait is not WAITS["synchronize"]:
            torch.cuda.set_sync_debug_mode("error")
            with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
                wait(one)
            torch.cuda.set_sync_debug_mode("warn")
            with pytest.warns(UserWarning, match="called a synchronizing CUDA operation") as told:
                wait(one)
            assert told[0].filename == __file__
    finally:
        torch.cuda.set_sync_debug_mode(before)
    with pytest.raises(RuntimeError, match=r"capture|capturing"):
        captured(lambda: wait(one))


@pytest.mark.parametrize("go_on", NO_WAITS.values(), ids=NO_WAITS)
def test_what_does_not_wait_is_not_told(go_on):
    one = on_device(1.0, 2.0)
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            go_on(one)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_copy_to_the_host_arrives_when_it_was_waited_for():
    to, one, other = torch.zeros(2, pin_memory=True), on_device(1.0, 2.0), on_device(5.0)
    to.copy_(one, non_blocking=True)
    arrived = torch.cuda.current_stream().record_event()
    later = other.to("cpu", non_blocking=True)
    assert to.isnan().all()
    arrived.synchronize()
    assert to.tolist() == [1.0, 2.0]
    assert later.isnan().all()
    torch.cuda.synchronize()
    assert later.tolist() == [5.0]


def test_memory_that_changes_before_it_was_sent_is_found():
    numbers = torch.ones(2).pin_memory()
    numbers.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    numbers += 1
    numbers.to("cuda", non_blocking=True)
    numbers += 1
    with pytest.raises(AssertionError, match="changed before it was copied"):
        torch.cuda.synchronize()


def test_a_replay_follows_the_device_and_not_the_host():
    one, number = on_device(1.0, 2.0), 10
    total = torch.zeros(2, device="cuda")
    graph, made = captured(lambda: total.add_(one * number))
    assert total.tolist() == [0.0, 0.0], "a capture computes nothing"
    graph.replay()
    assert made.tolist() == [10.0, 20.0]
    one.fill_(3.0)
    number = 100
    graph.replay()
    assert total.tolist() == [40.0, 50.0]


def test_a_capture_has_no_result_before_it_is_replayed():
    one = on_device(1.0)
    graph, made = captured(lambda: one + 1)
    assert made.isnan().all()
    graph.replay()
    assert made.tolist() == [2.0]


def test_a_replay_of_memory_that_was_freed_is_found():
    one, other = on_device(1.0), [on_device(2.0)]
    graph, _ = captured(lambda: one + other[0])
    graph.replay()
    other.clear()
    with pytest.raises(AssertionError, match="freed"):
        graph.replay()


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("writes_first", [False, True])
def test_two_streams_use_memory_in_an_order(waits, writes_first):
    one, side = on_device(1.0), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _ = one.add_(1) if writes_first else one + 1
    if waits:
        torch.cuda.current_stream().wait_stream(side)
        one.mul_(2)
    else:
        with pytest.raises(Race):
            one.mul_(2)


def test_memory_that_was_never_written_has_no_sensible_numbers():
    assert torch.empty(2, device="cuda").isnan().all()
    assert torch.empty(2, device="cuda", dtype=torch.long).tolist() == [-1, -1]
    assert on_device(1.0).new_empty(1).isnan().all()


def test_memory_is_counted_and_runs_out():
    before = torch.cuda.memory_allocated()
    one = torch.zeros(1000, device="cuda")
    torch.zeros(1000)
    assert torch.cuda.memory_allocated() == before + 4000
    del one
    assert torch.cuda.memory_allocated() == before
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 42, device="cuda")


def test_a_module_moves_to_the_device():
    module = torch.nn.Linear(2, 2)
    expected = module(torch.ones(1, 2))
    found = module.to("cuda")(torch.ones(1, 2, device="cuda"))
    assert found.is_cuda
    assert {one.device.type for one in module.parameters()} == {"cuda"}
    torch.testing.assert_close(found.cpu(), expected)


def test_kernels_take_no_memory_of_the_host():
    from data_engine_kernels import rms_norm

    rows = torch.ones(2, 16, device="cuda")
    with pytest.raises((AssertionError, RuntimeError), match=r"memory of the host|same device"):
        rms_norm(rows, torch.ones(16), 1e-6)
