"""What only a CUDA device can show: the choice of the kernels, and decode attention inside a CUDA graph."""

import pytest
import torch
from answers import Options, check_on, drawn, question, window

import data_engine_kernels as kernels
from data_engine.models.layers import attention_math
from data_engine.scoring import answers_attention
from data_engine_kernels import LayerCaches, RowIndex, members_of, reference

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def test_tensors_on_cuda_go_to_the_kernels(cuda, monkeypatch):
    from data_engine_kernels import attention_triton, logps_triton

    monkeypatch.setattr(logps_triton, "token_logps", lambda *arguments: "logps kernel")
    monkeypatch.setattr(attention_triton, "grouped_decode_attention", lambda *arguments: "attention kernel")
    some = torch.zeros(1, 1, device=cuda)
    assert kernels.token_logps(some, some, some) == "logps kernel"
    assert kernels.grouped_decode_attention(some, None, None, 1.0) == "attention kernel"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [6, 2])
def test_flash_attention_in_two_calls_is_the_layout_in_plain_torch(cuda, dtype, groups, monkeypatch):
    """Against attention's definition, and in plain torch in fp32 on the device, which goes another way."""
    questions = [question(50, (7, 1, 30), groups, 64, 64), question(9, (4,), groups, 64, 64)]
    parts = drawn(questions, (6, groups), 64, 64)
    calls = []
    monkeypatch.setattr(answers_attention, "flash", lambda *a: calls.append(a[5]) or attention_math.flash(*a))
    check_on(questions, parts, Options(), cuda, dtype)
    assert calls == [True, False]
    check_on(questions, parts, Options(), cuda, torch.float32)
    assert calls == [True, False], "flash attention is for half precision"


@pytest.mark.parametrize("options", [window(16), Options(softcap=2.0), Options(sinks=torch.arange(6.0) - 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_layers_that_do_more_are_one_softmax_on_the_device_too(cuda, dtype, options):
    questions = [question(50, (7, 1, 30), 2, 64, 64), question(9, (4,), 2, 64, 64)]
    parts = drawn(questions, (6, 2), 64, 64)
    check_on(questions, parts, options, cuda, dtype)


def test_a_cuda_graph_follows_lengths_slots_and_pages_that_change_in_place(cuda):
    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, 64, device=cuda, dtype=torch.bfloat16)

    query, caches = randn(4, 6), LayerCaches(randn(28, 2, 128), randn(28, 2, 128))
    pages, prefix_pages = torch.arange(12, device=cuda).view(4, 3), torch.arange(12, 27, device=cuda).view(3, 5)
    slots = torch.tensor([0, 0, 1, -1], device=cuda)
    suffix_lengths, prefix_lengths = torch.tensor([1, 2, 3, 0], device=cuda), torch.tensor([500, 20, 0], device=cuda)

    def step() -> torch.Tensor:
        rows = RowIndex(slots, suffix_lengths, prefix_lengths, members_of(slots, 3, 2), pages, prefix_pages)
        return kernels.grouped_decode_attention(query, caches, rows, 0.1)

    # The first call compiles, which a capture must not.
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    slots.copy_(torch.tensor([2, 1, 1, 0]))
    suffix_lengths.copy_(torch.tensor([300, 1, 40, 7]))
    prefix_lengths.copy_(torch.tensor([256, 0, 599]))
    order = torch.randperm(28)
    pages.copy_(order[:12].view(4, 3))
    prefix_pages.copy_(order[12:27].view(3, 5))
    query.normal_()
    graph.replay()
    rows = RowIndex(slots, suffix_lengths, prefix_lengths, members_of(slots, 3, 2), pages, prefix_pages)
    torch.testing.assert_close(out, reference.grouped_decode_attention(query, caches, rows, 0.1), rtol=0, atol=2e-2)
