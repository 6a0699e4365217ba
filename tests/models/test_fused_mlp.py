"""MLPs that run a kernel do what the model's code does; those that do otherwise stay as they are."""

import pytest
import torch
from torch import nn
from transformers import Gemma3nTextConfig, LlamaConfig
from transformers.activations import GELUTanh
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP
from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from data_engine.models.layers import merged_linear
from data_engine.models.layers.fused import fuse_operations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_mlp_whose_layers_are_numbered_is_known(calls, dtype):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 1}
    module, rows = Lfm2MLP(LlamaConfig(**sizes, block_auto_adjust_ff_dim=False)).to(dtype), torch.randn(3, 8).to(dtype)
    expected = module(rows)
    assert merged_linear.merge_linears(module) == 1
    assert fuse_operations(module) == 1
    calls.clear()
    found = module(rows)
    # One product over two weights may be summed in another order.
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert calls == {"act_and_mul": 1}


class SparseMLP(Gemma3nTextMLP):
    """Gemma 3n's code, which calls other code."""

    def _gaussian_topk(self, inputs):
        return inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
@pytest.mark.parametrize(("kind", "changed"), [(Gemma3nTextMLP, 1), (SparseMLP, 0)])
def test_an_mlp_that_keeps_its_largest_gates_alone_is_known(calls, kind, changed, share, dtype):
    sizes = {"hidden_size": 8, "intermediate_size": [64], "num_hidden_layers": 1}
    module = kind(Gemma3nTextConfig(**sizes, activation_sparsity_pattern=[share]), 0).to(dtype)
    rows = torch.randn(5, 8).to(dtype)
    expected = module(rows)
    assert fuse_operations(module) == changed
    calls.clear()
    assert torch.equal(module(rows), expected)
    assert calls["act_and_mul"] == changed


@pytest.mark.parametrize(
    ("activation", "changed"), [("silu", 1), ("swish", 1), ("gelu_pytorch_tanh", 1), ("gelu", 0), ("relu", 0)]
)
@pytest.mark.parametrize("kind", [LlamaMLP, Phi3MLP])
def test_an_mlp_with_another_activation_stays(kind, activation, changed, calls):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 1, "hidden_act": activation}
    module, rows = kind(LlamaConfig(**sizes)), torch.randn(3, 8)
    expected = module(rows)
    assert fuse_operations(module) == changed
    calls.clear()
    assert torch.equal(module(rows), expected)
    assert calls["act_and_mul"] == changed


class AtOnce(LlamaMLP):
    """Without a variable for what it returns."""

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Unreturned(LlamaMLP):
    """With one, but it returns another."""

    def forward(self, x):
        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # noqa: F841
        return x


@pytest.mark.parametrize(("kind", "changed"), [(AtOnce, 1), (Unreturned, 0)])
def test_what_is_returned_may_have_a_name_first(kind, changed):
    module, rows = kind(LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=1)), torch.randn(3, 8)
    expected = module(rows)
    assert fuse_operations(module) == changed
    assert torch.equal(module(rows), expected)


class Twice(nn.SiLU):
    def forward(self, gate):
        return 2 * super().forward(gate)


@pytest.mark.parametrize("kind", [LlamaMLP, Phi3MLP])
def test_an_activation_is_what_the_code_calls_and_of_no_subclass(kind):
    """And not what the module has by another name beside."""
    module = kind(LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=1, hidden_act="relu"))
    module.act_fn = module.activation_fn = Twice()
    assert fuse_operations(module) == 0
    # By operations that each round.
    module.act_fn = module.activation_fn = GELUTanh(use_gelu_tanh_python=True)
    assert fuse_operations(module) == 0
    setattr(module, "act_fn" if kind is Phi3MLP else "activation_fn", nn.SiLU())
    assert fuse_operations(module) == 0
