"""Norms and gated activations as one kernel each give the numbers of the code that they replace."""

import shutil

import pytest
import torch
from torch import nn
from transformers import GemmaConfig, LlamaConfig, LlamaModel, MistralConfig, MistralModel, Qwen2Config, Qwen2Model
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from data_engine import load_model, score_answers
from data_engine.models import cpu_linear, fused_layers, merged_linear
from data_engine.models.fused_layers import fuse_layers, silu_times

SIZES = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
SIZES |= {"num_hidden_layers": 2, "num_key_value_heads": 2}
DECODERS = [LlamaModel(LlamaConfig(**SIZES)), MistralModel(MistralConfig(**SIZES)), Qwen2Model(Qwen2Config(**SIZES))]


@pytest.fixture
def as_written(monkeypatch) -> None:
    """The activation is not compiled, which takes a C++ compiler and many seconds."""
    monkeypatch.setattr(fused_layers, "gated", lambda: silu_times)


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda one: type(one).__name__)
@torch.inference_mode()
def test_layers_with_the_code_of_llama_give_the_same(decoder, as_written):
    torch.manual_seed(0)
    for name, weight in decoder.named_parameters():
        if "norm" in name:
            weight.data = 1 + torch.randn_like(weight) / 4
    rows = torch.randn(2, 5, 32)
    expected = decoder.eval()(inputs_embeds=rows).last_hidden_state
    assert fuse_layers(decoder) == (2 * 2 + 1, 2)
    torch.testing.assert_close(decoder(inputs_embeds=rows).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_a_norm_of_another_formula_and_another_activation_stay():
    module = GemmaRMSNorm(8)
    assert fuse_layers(nn.Sequential(module)) == (0, 0)
    assert GemmaConfig().hidden_act != "silu"
    decoder = LlamaModel(LlamaConfig(**SIZES, hidden_act="gelu"))
    assert fuse_layers(decoder) == (5, 0)


@pytest.mark.parametrize("name", ["llava/instruct", "omnilmm/instruct"])
def test_loaded_models_score_the_same(name, goldens, golden_images, as_written):
    model = load_model(None, str(goldens / name), device="cpu", dtype="float32")
    asked = golden_images[0], "What is it?", [[7, 23, 9], [11, 4]]
    expected = score_answers(model, *asked)
    layers = model.decoder.config.num_hidden_layers
    assert fuse_layers(model.decoder) == (2 * layers + 1, layers)
    for one, other in zip(score_answers(model, *asked), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_it_is_off_and_loading_turns_on_what_the_switch_says(fused, goldens, monkeypatch, as_written):
    assert not fused_layers.FUSED
    monkeypatch.setattr(fused_layers, "FUSED", fused)
    monkeypatch.setattr(cpu_linear, "pack_linears", lambda decoder, once: None)
    monkeypatch.setattr(merged_linear, "merges_linears", lambda device, split: True)
    decoder = load_model(None, str(goldens / "llava/instruct"), device="cpu", dtype="float32").decoder
    layers = decoder.config.num_hidden_layers
    assert sum(isinstance(one, merged_linear.MergedLinear) for one in decoder.modules()) == 5 * layers
    assert sum("forward" in vars(one) for one in decoder.modules()) == (3 * layers + 1 if fused else 0)


# Torch's compiler imports what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@torch.inference_mode()
def test_the_activation_compiles_for_any_number_of_rows():
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    for rows in (1, 7, 204):
        both = torch.randn(rows, 1, 96)
        gate, up = both.split(48, -1)
        expected = gate / (1 + (-gate).exp()) * up
        torch.testing.assert_close(fused_layers.gated()(gate, up), expected, rtol=0, atol=1e-6)
