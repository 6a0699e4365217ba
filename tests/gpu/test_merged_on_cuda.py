"""Merged linear layers inside a CUDA graph, and in the products of a step."""

import pytest
import torch
from torch import nn

from data_engine.models.merged_linear import merge_linears

pytestmark = pytest.mark.gpu


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(1024, size, bias=False) for size in (1024, 256, 256))

    def forward(self, rows):
        return torch.cat([self.q_proj(rows), self.k_proj(rows), self.v_proj(rows)], -1)


@pytest.fixture
def module() -> Attention:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    found = Attention().to("cuda", torch.bfloat16)
    assert merge_linears(found) == 1
    return found


@torch.inference_mode()
def test_a_captured_product_follows_rows_that_change_in_place(module):
    rows = torch.randn(204, 1, 1024, device="cuda", dtype=torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        module(rows)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(rows)
    for _ in range(3):
        rows.copy_(torch.randn_like(rows))
        graph.replay()
        assert torch.equal(out, module(rows.clone()))


@torch.inference_mode()
def test_a_row_of_a_merged_product_keeps_its_bits_beside_others_and_in_any_place(module):
    rows = torch.randn(204, 1, 1024, device="cuda", dtype=torch.bfloat16)
    out, order = module(rows), torch.randperm(204, device="cuda")
    assert torch.equal(module(rows[order].contiguous()), out[order])
    others = torch.randn_like(rows)
    others[17] = rows[17]
    assert torch.equal(module(others)[17], out[17])
