"""Linear layers that are one product give the numbers of plain ones, and never those of another call."""

from collections.abc import Callable

import adapters
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
from transformers.models.mllama.modeling_mllama import MllamaTextCrossAttention

from data_engine import load_model, sample_answers, score_answers
from data_engine.models.layers import attention, cpu_linear
from data_engine.models.layers.attention import attending
from data_engine.models.layers.head import Head
from data_engine.models.layers.linear_uses import calls_with_one_tensor
from data_engine.models.layers.merged_linear import MergedLinear, merge_linears, merges_linears
from data_engine.models.layers.noting import Noting

QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


class Attention(nn.Module):
    """Queries, keys and values of the same rows; `stops`: an exception comes before the last of them."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, 12, bias=bias), nn.Linear(8, 4, bias=bias)
        self.v_proj, self.stops = nn.Linear(8, 4, bias=bias), False

    def forward(self, rows):
        queries = self.q_proj(rows)
        keys = self.k_proj(rows)
        if self.stops:
            raise torch.OutOfMemoryError("no room")
        values = self.v_proj(rows)
        return torch.cat([queries, keys, values], -1)


def merged(module: nn.Module) -> nn.Module:
    assert merge_linears(module) == 1
    return module


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_product_gives_each_layer_its_own_part(bias):
    torch.manual_seed(0)
    plain, rows = Attention(bias), torch.randn(2, 5, 8)
    expected = torch.cat([layer(rows) for layer in (plain.q_proj, plain.k_proj, plain.v_proj)], -1)
    weights = [layer.weight.clone() for layer in (plain.q_proj, plain.k_proj, plain.v_proj)]
    module = merged(plain)
    torch.testing.assert_close(module(rows), expected, rtol=0, atol=1e-6)
    for name, weight in zip(QKV, weights, strict=True):
        layer = getattr(module, name)
        assert isinstance(layer, MergedLinear)
        assert torch.equal(layer.weight, weight)
        assert (layer.bias is not None) == bias


def test_the_weights_are_held_once():
    module = merged(Attention())
    storages = {getattr(module, name).weight.untyped_storage().data_ptr() for name in QKV}
    assert storages == {module.q_proj.product.weight.untyped_storage().data_ptr()}
    assert [name for name, _ in module.named_parameters()] == [f"{name}.weight" for name in QKV]


@torch.inference_mode()
def test_a_tensor_that_changed_in_place_is_computed_anew():
    """As a step's rows, which lie at the same address in each step."""
    module, rows = merged(Attention()), torch.randn(3, 8)
    module(rows)
    rows.copy_(torch.randn(3, 8))
    expected = torch.cat([rows @ getattr(module, name).weight.T for name in QKV], -1)
    torch.testing.assert_close(module(rows), expected, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_a_call_that_fails_leaves_nothing_behind():
    module, rows = merged(Attention()), torch.randn(3, 8)
    module.stops = True
    with pytest.raises(torch.OutOfMemoryError):
        module(rows)
    assert (module.q_proj.product._rows, module.q_proj.product._waiting) == (None, {})
    rows.zero_()
    assert not module.v_proj(rows).any()


@torch.inference_mode()
def test_a_layer_that_is_called_alone_or_twice_or_with_another_tensor_is_right_too():
    module, one, other = merged(Attention()), torch.randn(3, 8), torch.randn(3, 8)

    def check(name, rows):
        layer = getattr(module, name)
        torch.testing.assert_close(layer(rows), rows @ layer.weight.T, rtol=0, atol=1e-6)

    for name, rows in [("q_proj", one), ("k_proj", other), ("v_proj", one), ("v_proj", one), ("k_proj", one)]:
        check(name, rows)


class Crossed(Attention):
    def forward(self, rows, others):
        return self.q_proj(rows), self.k_proj(others), self.v_proj(others)


class Sometimes(Attention):
    def forward(self, rows):
        queries = self.q_proj(rows)
        if self.stops:
            return queries
        else:
            return queries, self.k_proj(rows), self.v_proj(rows)


class Replaced(Attention):
    def forward(self, rows):
        queries = self.q_proj(rows)
        rows = rows + 1
        return queries, self.k_proj(rows), self.v_proj(rows)


class Written(Attention):
    def forward(self, rows):
        queries = self.q_proj(rows)
        rows.add_(1)
        return queries, self.k_proj(rows), self.v_proj(rows)


class WrittenInPart(Attention):
    def forward(self, rows):
        queries = self.q_proj(rows)
        rows[:, 0] = 0
        return queries, self.k_proj(rows), self.v_proj(rows)


class Twice(Attention):
    def forward(self, rows):
        return self.q_proj(self.q_proj(rows)), self.k_proj(rows), self.v_proj(rows)


class Chosen(Attention):
    def forward(self, rows):
        return self.q_proj(rows), self.k_proj(rows) if self.stops else rows, self.v_proj(rows)


class Doubled(Attention):
    def forward(self, rows):
        return self.q_proj(rows), self.k_proj(rows), self.v_proj(2 * rows)


@pytest.mark.parametrize("kind", [Crossed, Sometimes, Replaced, Written, WrittenInPart, Twice, Doubled, Chosen])
def test_code_that_calls_its_layers_otherwise_stays_plain(kind):
    assert not calls_with_one_tensor(kind, QKV)
    assert merge_linears(kind()) == 0


def test_the_code_of_transformers_is_read():
    assert calls_with_one_tensor(LlamaAttention, QKV)
    assert calls_with_one_tensor(LlamaMLP, GATE_UP)
    assert not calls_with_one_tensor(MllamaTextCrossAttention, QKV)


def test_layers_of_another_kind_dtype_bias_or_weight_stay_plain():
    class Quantised(nn.Linear):
        pass

    changes: list[Callable[[Attention], object]] = [
        lambda one: setattr(one, "k_proj", Quantised(8, 4, bias=False)),
        lambda one: one.k_proj.to(torch.bfloat16),
        lambda one: setattr(one, "k_proj", nn.Linear(8, 4)),
        lambda one: setattr(one.k_proj, "weight", one.v_proj.weight),
        lambda one: one.k_proj.to("meta"),
        lambda one: one.k_proj.register_forward_hook(lambda *_: None),
        lambda one: one.k_proj.register_forward_pre_hook(lambda *_: None),
        lambda one: setattr(one.k_proj, "forward", one.v_proj.forward),
    ]
    for change in changes:
        module = Attention()
        change(module)
        assert merge_linears(module) == 0


def test_layers_are_merged_on_a_gpu_alone_and_where_each_rank_holds_its_weights():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert merges_linears(cuda, split=False)
    assert not merges_linears(cuda, split=True)
    assert not merges_linears(cpu, split=False)


@torch.inference_mode()
def test_a_prefix_does_not_keep_the_queries_of_its_prompt():
    config = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    config._attn_implementation = attention.NAME
    decoder = LlamaModel(config).eval()
    assert merge_linears(decoder) == 4
    noting = Noting(5)
    with attending(noting, {layer.self_attn: number for number, layer in enumerate(decoder.layers)}):
        decoder(input_ids=torch.arange(5)[None])
    for noted in noting.noted.values():
        for part in (noted.keys, noted.values):
            assert part.untyped_storage().nbytes() == part.nbytes


@pytest.fixture(params=["llava/instruct", "omnilmm/instruct"])
def folder(request, goldens):
    return goldens / request.param


@pytest.fixture
def as_on_a_gpu(monkeypatch) -> list[int]:
    """Layers are merged at loading, not packed; how many products each model got."""
    made: list[int] = []
    monkeypatch.setattr(cpu_linear, "pack_linears", lambda decoder, once: made.append(merge_linears(decoder)))
    return made


def test_loaded_models_give_the_numbers_of_plain_layers(folder, golden_images, as_on_a_gpu, monkeypatch):
    def numbers(model) -> list[torch.Tensor]:
        """Log-probs of answers, and the logits behind a prompt and of each step of an answer."""
        logits, original = [], Head.logits
        with monkeypatch.context() as patch:
            patch.setattr(Head, "logits", lambda *a: logits.append(original(*a)) or logits[-1].clone())
            drawn = sample_answers(model, golden_images[0], "What is it?", k=3, temperature=0.0, max_new_tokens=6)
        assert len(logits) >= 6
        return [*score_answers(model, golden_images[0], "What is it?", [one.token_ids for one in drawn]), *logits]

    ours = load_model(None, str(folder), device="cpu", dtype="float32")
    assert as_on_a_gpu == [2 * ours.decoder.config.num_hidden_layers]
    monkeypatch.setattr(cpu_linear, "pack_linears", lambda decoder, once: None)
    plain = load_model(None, str(folder), device="cpu", dtype="float32")
    for one, other in zip(numbers(ours), numbers(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_an_adapter_is_in_the_merged_weights(folder, tmp_path, as_on_a_gpu):
    base = load_model(None, str(folder), device="cpu", dtype="float32")
    names = [f"model.layers.0.self_attn.{name}.weight" for name in QKV]
    names.append("model.layers.1.mlp.up_proj.weight")
    before = {name: base.decoder.get_parameter(name.removeprefix("model.")).clone() for name in names}
    pairs = adapters.matrices(before)
    adapters.write(tmp_path / "adapter", folder, adapters.stored(pairs))
    changed = load_model(None, str(tmp_path / "adapter"), device="cpu", dtype="float32")
    for name in names:
        layer = changed.decoder.get_submodule(name.removeprefix("model.").removesuffix(".weight"))
        expected = adapters.added(before[name], *pairs[name])
        assert torch.equal(layer.weight, expected)
        assert isinstance(layer, MergedLinear)
        rows = torch.randn(3, layer.in_features)
        torch.testing.assert_close(layer(rows), rows @ expected.T, rtol=0, atol=1e-5)
