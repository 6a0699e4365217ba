"""Norms, rotary embedding and MLPs that run a kernel do what the model's code does; other code stays as it is."""

import functools
import sys
from types import FunctionType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fused_layers import OPERATIONS, llama, run
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNormGated

from data_engine import load_model, sample_answers, score_answers
from data_engine.models.layers import compiled_layers, fused, merged_linear
from data_engine.models.layers.fused import fuse_operations
from data_engine.models.layers.same_code import same_code


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_decoder_of_llama_runs_each_kernel_once_where_it_ran_that_code(calls, dtype):
    decoder = llama().to(dtype)
    expected = run(decoder)
    assert not calls
    # Two norms, an attention and an MLP a layer, and the norm behind them.
    assert fuse_operations(decoder) == 2 * 4 + 1
    # What was tried before.
    calls.clear()
    assert torch.equal(run(decoder), expected)
    assert calls == {"rms_norm": 5, "apply_rotary": 2, "act_and_mul": 2}
    # Whoever asks for a module's class, or its name, finds it.
    assert isinstance(decoder.norm, LlamaRMSNorm)
    kind = type(decoder.norm)
    assert (kind.__name__, kind.__module__) == ("LlamaRMSNorm", LlamaRMSNorm.__module__)


def norms(dtype: torch.dtype = torch.float32) -> list[tuple[nn.Module, Tensor | None]]:
    """Norms of four kinds with drawn weights, and what they multiply with, and one without a weight."""
    found: list[tuple[nn.Module, Tensor | None]] = []
    for norm, offset in ((LlamaRMSNorm(8), 0), (GemmaRMSNorm(8), 1), (Gemma3nRMSNorm(8), 0), (NemotronHRMSNorm(8), 0)):
        nn.init.normal_(norm.weight)
        found.append((norm.to(dtype), norm.weight + offset))
    return [*found, (Gemma3nRMSNorm(8, with_scale=False), None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", range(5))
def test_the_norms_of_llama_of_gemma_and_of_nemotron_are_known(calls, number, dtype):
    norm, weight = norms(dtype)[number]
    rows = torch.randn(3, 8).to(dtype)
    expected = norm(rows)
    assert fuse_operations(norm) == 1
    calls.clear()
    assert torch.equal(norm(rows), expected)
    assert calls == {"rms_norm": 1}
    if dtype == torch.float32:
        torch.testing.assert_close(expected, F.rms_norm(rows, (8,), weight, 1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(8,), (2, 4)])
def test_the_norm_of_cohere_is_known_also_one_with_weights_for_each_head(calls, shape, dtype):
    norm = CohereLayerNorm(shape)
    nn.init.normal_(norm.weight)
    norm, rows = norm.to(dtype), torch.randn(3, 2, shape[-1]).to(dtype)
    expected = norm(rows)
    assert fuse_operations(norm) == 1
    calls.clear()
    assert torch.equal(norm(rows), expected)
    assert calls == {"rms_norm": 1}
    if dtype == torch.float32:
        torch.testing.assert_close(expected, F.layer_norm(rows, shape[-1:], eps=1e-5) * norm.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("activation", "changed"), [("silu", 1), ("swish", 1), ("gelu_pytorch_tanh", 0), ("relu", 0)])
def test_a_norm_with_a_gate_is_known_if_its_activation_is_that_of_the_kernel(calls, activation, changed, dtype):
    norm = Qwen3_5RMSNormGated(8)
    nn.init.normal_(norm.weight)
    norm.activation = activation
    norm, (rows, gate) = norm.to(dtype), torch.randn(2, 3, 8).to(dtype)
    expected = norm(rows, gate)
    assert fuse_operations(norm) == changed
    calls.clear()
    assert torch.equal(norm(rows, gate), expected)
    assert calls["rms_norm"] == changed


@pytest.mark.usefixtures("known_anew")
def test_code_of_transformers_that_does_otherwise_than_the_formula_is_no_example(monkeypatch):
    """As it might in another version."""
    monkeypatch.setattr(LlamaRMSNorm, "forward", Summed.forward)
    assert fuse_operations(llama()) == 2 * 2


@pytest.mark.usefixtures("known_anew")
def test_a_version_of_transformers_without_one_of_them_has_the_others(monkeypatch):
    monkeypatch.delattr("transformers.models.phi3.modeling_phi3.Phi3MLP")
    monkeypatch.setitem(sys.modules, "transformers.models.gemma3n.modeling_gemma3n", None)
    known = [kind.__name__ for kind, _ in fused._known_modules()]
    norms = ["LlamaRMSNorm", "GemmaRMSNorm", "NemotronHRMSNorm", "Cohere2LayerNorm", "Qwen3_5RMSNormGated"]
    assert known == [*norms, "LlamaMLP", "Lfm2MLP"]
    assert fused._known_rotary()
    assert "modeling_gemma3n" not in {one.__module__.rpartition(".")[2] for one, _ in fused._known_rotary()}


class Renamed(LlamaRMSNorm):
    """The same under other names."""

    def forward(self, x):
        """And with a docstring."""
        kind = x.dtype
        x = x.to(torch.float32)
        v = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(v + self.variance_epsilon)
        return self.weight * x.to(kind)


class Summed(LlamaRMSNorm):
    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).sum(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class Swapped(LlamaRMSNorm):
    """One variable in the place of another."""

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = variance * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class Replaced(GemmaRMSNorm):
    """Gemma's code, which calls other code."""

    def _norm(self, x):
        return x


@pytest.mark.parametrize(
    ("kind", "changed"),
    [(MistralRMSNorm, 1), (Renamed, 1), (Summed, 0), (Swapped, 0), (Replaced, 0), (Olmo2RMSNorm, 0), (nn.RMSNorm, 0)],
)
def test_code_is_what_it_does_whatever_its_names(kind, changed):
    norm, rows = kind(8), torch.randn(3, 8)
    expected = norm(rows)
    assert fuse_operations(norm) == changed
    assert torch.equal(norm(rows), expected)


def doubled(forward):
    @functools.wraps(forward)
    def run(self, rows):
        return 2 * forward(self, rows)

    return run


class Decorated(LlamaRMSNorm):
    forward = doubled(LlamaRMSNorm.forward)


class TakesMore(LlamaRMSNorm):
    """The same, which may be called otherwise."""

    def forward(self, hidden_states, dtype=None):
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(dtype)


class OtherTorch(LlamaRMSNorm):
    """The name `torch` means something else around the code."""

    forward = FunctionType(
        LlamaRMSNorm.forward.__code__, {"torch": SimpleNamespace(float32=torch.float32, rsqrt=torch.sqrt)}
    )


def enclosed():
    torch = SimpleNamespace(float32=globals()["torch"].float32, rsqrt=globals()["torch"].sqrt)

    class Enclosed(LlamaRMSNorm):
        def forward(self, hidden_states):
            input_dtype = hidden_states.dtype
            hidden_states = hidden_states.to(torch.float32)
            variance = hidden_states.pow(2).mean(-1, keepdim=True)
            hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
            return self.weight * hidden_states.to(input_dtype)

    return Enclosed


@pytest.mark.parametrize("kind", [Decorated, TakesMore, OtherTorch, enclosed()])
def test_code_around_the_same_words_may_make_them_mean_something_else(kind):
    norm, rows = kind(8), torch.randn(3, 8)
    expected = norm(rows)
    assert fuse_operations(norm) == 0
    assert torch.equal(norm(rows), expected)


def test_what_wraps_code_is_not_taken_for_it():
    """Its source, as inspect gives it, is that of what it wraps."""

    def plain(x):
        return x + 1

    def other(x):
        return x + 2

    functools.update_wrapper(other, plain)
    assert not same_code(other, plain)
    assert same_code(plain, plain)


def test_a_module_whose_forward_was_replaced_stays_and_hooks_go_on():
    norm = LlamaRMSNorm(8)
    norm.forward = lambda rows: rows + 1
    assert fuse_operations(norm) == 0
    norm, seen = LlamaRMSNorm(8), []
    norm.register_forward_hook(lambda module, given, made: seen.append(made))
    assert fuse_operations(norm) == 1
    norm(torch.ones(1, 8))
    assert len(seen) == 1


@pytest.fixture(params=["llava/instruct", "omnilmm/instruct"])
def folder(request, goldens) -> str:
    return str(goldens / request.param)


@pytest.fixture
def as_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(merged_linear, "merges_linears", lambda device, split: not split)


def numbers(model, image) -> list:
    drawn = [one.token_ids for one in sample_answers(model, image, "What is it?", k=3, seed=1, max_new_tokens=6)]
    return [drawn, *(one.tolist() for one in score_answers(model, image, "What is it?", [*drawn, [7, 23, 9]]))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_loaded_model_gives_the_same_numbers_by_the_formulas(folder, dtype, golden_images, calls, monkeypatch):
    monkeypatch.setattr("data_engine.models.layers.cpu_linear.pack_linears", lambda decoder, once: None)
    ours = load_model(None, folder, device="cpu", dtype=dtype)
    found = numbers(ours, golden_images[0])
    assert all(calls[name] for name in OPERATIONS)
    calls.clear()
    monkeypatch.setattr(fused, "fuse_operations", lambda decoder: 0)
    plain = load_model(None, folder, device="cpu", dtype=dtype)
    assert found == numbers(plain, golden_images[0])
    assert not calls


def changed_in(model) -> bool:
    """Whether its norms run the kernel."""
    return type(model.decoder.norm).forward is fused._norm


@pytest.mark.usefixtures("as_on_a_gpu")
def test_layers_are_fused_or_compiled_and_not_both(folder, monkeypatch, caplog):
    load = dict(name=None, path=folder, device="cpu", dtype="float32")
    assert changed_in(load_model(**load))
    before = []
    monkeypatch.setattr(compiled_layers, "compile_layers", lambda model: before.append(changed_in(model)))
    assert not changed_in(load_model(**load, compiled=True))
    # What cannot be compiled is as without the flag.
    monkeypatch.setattr(compiled_layers, "compile_layers", lambda model: "it has states")
    assert changed_in(load_model(**load, compiled=True))
    assert before == [False]
    assert "are not compiled: it has states" in caplog.text


def test_on_a_cpu_nothing_is_fused(folder):
    assert not changed_in(load_model(None, folder, device="cpu", dtype="float32"))
