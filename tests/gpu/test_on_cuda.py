"""What only a CUDA device can show: the choice of the kernels, and decode attention inside a CUDA graph."""

import pytest
import torch

import data_engine_kernels as kernels
from data_engine.scoring.packed_attention import Flash, Packed, packed_layout
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
def test_flash_attention_in_two_calls_is_the_layout_in_plain_torch(cuda, dtype, groups):
    """With answers without tokens, and a question that has no other."""
    stretches = [50, 9, 20, 3], [[7, 0, 1, 30], [4], [0, 0], [0, 11]]
    tokens = sum(stretches[0]) + sum(map(sum, stretches[1]))
    parts = [torch.randn(1, heads, tokens, 64, device=cuda, dtype=dtype) for heads in (6, groups, groups)]
    layout = packed_layout(*stretches, cuda, dtype, 64)
    assert isinstance(layout, Flash)
    plain = packed_layout(*stretches, cuda, torch.float32, 64)
    assert isinstance(plain, Packed)
    wanted = plain.attend(0, *(part.float() for part in parts), 0.125)
    torch.testing.assert_close(layout.attend(0, *parts, 0.125).float(), wanted, rtol=0, atol=2e-2)


def test_a_cuda_graph_follows_lengths_slots_and_pages_that_change_in_place(cuda):
    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, 64, device=cuda, dtype=torch.bfloat16)

    query, caches = randn(4, 6), LayerCaches(randn(3, 2, 600), randn(3, 2, 600), randn(13, 2, 128), randn(13, 2, 128))
    pages = torch.arange(12, device=cuda).view(4, 3)
    slots = torch.tensor([0, 0, 1, -1], device=cuda)
    suffix_lengths, prefix_lengths = torch.tensor([1, 2, 3, 0], device=cuda), torch.tensor([500, 20, 0], device=cuda)

    def step() -> torch.Tensor:
        rows = RowIndex(slots, suffix_lengths, prefix_lengths, members_of(slots, 3, 2), pages)
        return kernels.grouped_decode_attention(query, caches, rows, 0.1)

    # The first call compiles, which a capture must not.
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    slots.copy_(torch.tensor([2, 1, 1, 0]))
    suffix_lengths.copy_(torch.tensor([300, 1, 40, 7]))
    prefix_lengths.copy_(torch.tensor([256, 0, 599]))
    pages.copy_(torch.randperm(13)[:12].view(4, 3))
    query.normal_()
    graph.replay()
    rows = RowIndex(slots, suffix_lengths, prefix_lengths, members_of(slots, 3, 2), pages)
    torch.testing.assert_close(out, reference.grouped_decode_attention(query, caches, rows, 0.1), rtol=0, atol=2e-2)
