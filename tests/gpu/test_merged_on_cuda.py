"""Merged linear layers inside a CUDA graph, and in the products of a step."""

import pytest
import torch
from torch import nn

from data_engine import load_model
from data_engine.models.layers.merged_linear import MergedLinear, merge_linears
from data_engine.questions.conversation import Conversation
from data_engine.scoring.logprobs import Scored, score_pass

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


def test_a_loaded_model_with_merged_layers_scores_as_on_cpu(module, instruct, goldens, golden_images):
    """Its images go through the tower together, too."""
    model = load_model(None, str(goldens / "llava/instruct"), device="cuda", dtype="float32")
    assert any(isinstance(layer, MergedLinear) for layer in model.decoder.modules())
    assert type(model.decoder.norm).forward.__module__.endswith("fused")
    found, expected = (
        score_pass(one, [
            Scored(one.prompt(Conversation.of("What is it?"), [image], True, 64), [[7, 23, 9], [11, 4]])
            for image in golden_images[:4]
        ])
        for one in (model, instruct)
    )  # fmt: skip
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=0, atol=1e-3)
