"""Small operations of a decoder on a GPU: norms, rotary embedding and the activation of an MLP, one launch each.

As the code of transformers writes them, they are 28 of the 38 launches of a LLaMA layer (docs/gpu.md). That code
stays as it is: a module whose class does, word for word, what one of a few known classes does, runs the kernel instead.
Numbers are rounded where they were, so a kernel stands for its code in prompts, in steps and in scoring alike.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_engine.models.layers.same_code import same_code, without_former_names
from data_engine_kernels import Activation, act_and_mul, apply_rotary, rms_norm

# What attention modules of transformers call, by these names.
ROTARY = "apply_rotary_pos_emb"
INTERLEAVED = f"{ROTARY}_interleave"


class Turning(NamedTuple):
    """How a model's code turns heads."""

    widths: tuple[int, ...] = (8,)
    """of tables that it takes for heads of 8"""
    neighbours: bool = False
    in_fp32: bool = False
    fp32_tables: bool = False
    """whether it does so with tables of fp32 alone"""
    apart: bool = False
    name: str = ROTARY
    """of the function"""

    def kernel(self, heads: Sequence[Tensor], cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return apply_rotary(heads, cos, sin, neighbours=self.neighbours, in_fp32=self.in_fp32, apart=self.apart)


# Models of transformers that have it in forms that the kernel knows: for a whole head, a part of one, and one tensor.
KNOWN_ROTARY = {
    "llama": Turning(),
    "glm4_moe": Turning(widths=(8, 4)),
    "gemma3n": Turning(),
    "glm4v": Turning(widths=(8, 4), neighbours=True),
    "cohere2": Turning(neighbours=True, in_fp32=True),
    "ernie4_5_vl_moe": Turning(neighbours=True, in_fp32=True),
    "hunyuan_vl": Turning(in_fp32=True),
    "lfm3": Turning(in_fp32=True, fp32_tables=True),
    "deepseek_v3": Turning(apart=True, name=INTERLEAVED),
}


def fuse_operations(decoder: nn.Module) -> int:
    """Have modules of a decoder run the kernels; how many do. Behind merge_linears, which reads their code.

    Each gets a class of its own kind: what it holds, its hooks and its name stay.
    """
    changed = 0
    for module in decoder.modules():
        forward = _fused(module)
        if forward is not None:
            module.__class__ = _with_forward(type(module), forward)
            changed += 1
    return changed


def _fused(module: nn.Module) -> Callable | None:
    """A forward that does the same by a kernel, if there is one."""
    kind = type(module)
    if not isinstance(kind.forward, FunctionType) or "forward" in vars(module):
        return None
    for known, forward in _known_modules():
        if all(same_code(getattr(kind, name, None), getattr(known, name)) for name in _methods(known)):
            name, taken = ACTIVATIONS.get(forward, (None, ()))
            return forward if name is None or activation_of(module, name) in taken else None
    forward = without_former_names(kind.forward)
    return None if {ROTARY, INTERLEAVED}.isdisjoint(forward.__code__.co_names) else _attention(forward)


def _methods(kind: type[nn.Module]) -> list[str]:
    """What its forward is made of: itself, and methods of the class that it calls."""
    called = without_former_names(kind.forward).__code__.co_names
    return ["forward", *(name for name in called if isinstance(vars(kind).get(name), FunctionType))]


@functools.cache
def _known_modules() -> list[tuple[type[nn.Module], Callable]]:
    """Classes of transformers, each with a forward that stands for its own.

    Only those for which it does so here, to the last bit on a CPU: transformers may change its code, and with it what
    code is the same as that.
    """
    drawn, found = torch.Generator().manual_seed(0), []
    for (model, name), forward in KNOWN.items():
        kind = _of_transformers(model, name)
        if kind is None:
            continue
        # Modules draw weights when they are made. To seed that generator would seed those of all devices.
        with torch.random.fork_rng(devices=[]):
            module = kind(8) if "Norm" in name else kind(*_sizes(model))
        for weight in module.parameters():
            nn.init.normal_(weight, generator=drawn)
        given = torch.randn(kind.forward.__code__.co_argcount - 1, 3, 8, generator=drawn)
        if torch.equal(module(*given), forward(module, *given)):
            found.append((kind, forward))
    return found


def _sizes(model: str) -> tuple[object, ...]:
    """What an MLP of a model is made of: a configuration, and the number of a layer where that has sizes by layer."""
    from transformers import Gemma3nTextConfig, LlamaConfig

    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    if model == "gemma3n":
        by_layer = {"num_hidden_layers": 1, "intermediate_size": [12], "activation_sparsity_pattern": [0.75]}
        return Gemma3nTextConfig(hidden_size=8, **heads, **by_layer), 0
    return (LlamaConfig(hidden_size=8, intermediate_size=12, **heads, block_auto_adjust_ff_dim=False),)


def _of_transformers(model: str, name: str) -> Any:
    """A class or function in the code of a model; None where this version of transformers has none of that name."""
    try:
        return getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name, None)
    except ImportError:
        return None


@functools.cache
def _with_forward(kind: type[nn.Module], forward: Callable) -> type[nn.Module]:
    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _norm(self: nn.Module, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _norm_by_weight_and_one(self: nn.Module, x: Tensor) -> Tensor:
    return rms_norm(x, self.weight, self.eps, offset=1.0)


def _norm_in_fp32(self: nn.Module, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight if self.with_scale else None, self.eps, offset=0.0)


def _norm_rounded_last(self: nn.Module, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, self.variance_epsilon, offset=0.0)


def _gated_norm(self: nn.Module, hidden_states: Tensor, gate: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, self.variance_epsilon, gate=gate)


def _centred_norm(self: nn.Module, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, self.variance_epsilon, offset=0.0, centred=True)


def _mlp(self: nn.Module, x: Tensor) -> Tensor:
    return self.down_proj(act_and_mul(self.gate_proj(x), self.up_proj(x), activation_of(self, "act_fn")))


def _merged_mlp(self: nn.Module, hidden_states: Tensor) -> Tensor:
    gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
    return self.down_proj(act_and_mul(gate, up, activation_of(self, "activation_fn")))


def _numbered_mlp(self: nn.Module, x: Tensor) -> Tensor:
    return self.w2(act_and_mul(self.w1(x), self.w3(x), "silu"))


def _sparse_mlp(self: nn.Module, hidden_states: Tensor) -> Tensor:
    """Gemma 3n's, which sets all but the largest gates to zero.

    How many follows from a number of the host's, which its own code sends in each step: no graph could hold that.
    """
    gate = self.gate_proj(hidden_states)
    if self.activation_sparsity > 0:
        deviations = _deviations(self.activation_sparsity, gate.dtype)
        spread = torch.std(gate, dim=-1, keepdim=True, unbiased=False)
        gate = nn.functional.relu(gate - (torch.mean(gate, dim=-1, keepdim=True) + spread * deviations))
    return self.down_proj(act_and_mul(gate, self.up_proj(hidden_states), activation_of(self, "act_fn")))


@functools.cache
def _deviations(share: float, dtype: torch.dtype) -> float:
    """Standard deviations above the mean below which that share of a normal distribution lies."""
    return torch.distributions.Normal(0, 1).icdf(torch.tensor(share)).to(dtype).item()


# What stands for the code of a class of transformers, by its model and name.
KNOWN: dict[tuple[str, str], Callable] = {
    ("llama", "LlamaRMSNorm"): _norm,
    ("gemma", "GemmaRMSNorm"): _norm_by_weight_and_one,
    ("gemma3n", "Gemma3nRMSNorm"): _norm_in_fp32,
    ("nemotron_h", "NemotronHRMSNorm"): _norm_rounded_last,
    ("cohere2", "Cohere2LayerNorm"): _centred_norm,
    ("qwen3_5", "Qwen3_5RMSNormGated"): _gated_norm,
    ("llama", "LlamaMLP"): _mlp,
    ("phi3", "Phi3MLP"): _merged_mlp,
    ("lfm2", "Lfm2MLP"): _numbered_mlp,
    ("gemma3n", "Gemma3nTextMLP"): _sparse_mlp,
}
# What the code that each stands for calls its activation, and which of them it may be.
ACTIVATIONS: dict[Callable, tuple[str, tuple[Activation, ...]]] = {
    _mlp: ("act_fn", ("silu", "gelu_tanh")),
    _sparse_mlp: ("act_fn", ("silu", "gelu_tanh")),
    _merged_mlp: ("activation_fn", ("silu", "gelu_tanh")),
    _gated_norm: ("activation", ("silu",)),
}


def activation_of(module: nn.Module, name: str) -> Activation | None:
    """The kernel's name for what a module has as its activation, or names in transformers' way; None: it has none."""
    from transformers.activations import ACT2FN, GELUTanh, SiLUActivation

    found = getattr(module, name)
    found = ACT2FN[found] if isinstance(found, str) else found
    # No subclasses, which may do otherwise.
    if type(found) in (nn.SiLU, SiLUActivation):
        return "silu"
    return "gelu_tanh" if type(found) is GELUTanh and isinstance(found.act, functools.partial) else None


@functools.cache
def _attention(forward: FunctionType) -> Callable | None:
    """The same code, for which the names of rotary embeddings mean the kernel."""
    kernels = {}
    for name in {ROTARY, INTERLEAVED}.intersection(forward.__code__.co_names):
        plain = forward.__globals__.get(name)
        turning = next((turning for known, turning in _known_rotary() if same_code(plain, known)), None)
        if turning is not None:
            kernels[name] = _rotary(plain, turning)
    if not kernels:
        return None
    made = FunctionType(
        forward.__code__, forward.__globals__ | kernels, forward.__name__, forward.__defaults__, forward.__closure__
    )
    made.__kwdefaults__ = forward.__kwdefaults__
    return functools.update_wrapper(made, forward)


@functools.cache
def _known_rotary() -> list[tuple[FunctionType, Turning]]:
    """Of KNOWN_ROTARY those for which the kernel's formula gives the same bits on a CPU; see _known_modules.

    With the package `kernels`, some versions of transformers have modules in the place of functions; those stay.
    """
    found = []
    for name, turning in KNOWN_ROTARY.items():
        function = _of_transformers(name, turning.name)
        if isinstance(function, FunctionType) and all(
            _turns_alike(function, turning, width) for width in turning.widths
        ):
            found.append((function, turning))
    return found


def _turns_alike(function: FunctionType, turning: Turning, width: int) -> bool:
    """Whether the kernel's formula gives the same bits, for heads of 8 in bf16 and tables of that width."""
    drawn, number = torch.Generator().manual_seed(0), _num_heads(function)
    heads = [torch.randn(1, count, 3, 8, generator=drawn).bfloat16() for count in (2, 1)[:number]]
    cos, sin = torch.randn(2, 1, 3, width, generator=drawn).to(torch.float32 if turning.fp32_tables else torch.bfloat16)
    made = function(*heads, cos, sin)
    found = turning.kernel(heads, cos, sin)
    return all(map(torch.equal, made if number == 2 else [made], found))


def _num_heads(rotary: FunctionType) -> int:
    """Tensors that it turns: queries and keys, or one; the two tables come behind them, and what need not be given."""
    return rotary.__code__.co_argcount - len(rotary.__defaults__ or ()) - 2


@functools.cache
def _rotary(plain: FunctionType, turning: Turning) -> Callable:
    """The kernel in the place of a known function; that runs where it is called otherwise than models do."""

    @functools.wraps(plain)
    def rotary(*given, **options) -> Tensor | tuple[Tensor, ...]:
        *heads, cos, sin = given if len(given) == _num_heads(plain) + 2 else (None, None)
        axis = options.get("unsqueeze_dim", 1)
        usual = heads and {one.dim() for one in heads} == {4} and cos.dim() == sin.dim() == 3
        usual = usual and (not turning.fp32_tables or cos.dtype == sin.dtype == torch.float32)
        if not usual or axis not in (1, 2) or not options.keys() <= {"unsqueeze_dim"}:
            return plain(*given, **options)
        # Tokens before heads, where the tables are broadcast along the third axis.
        heads = [one.transpose(1, 2) for one in heads] if axis == 2 else heads
        turned = turning.kernel(heads, cos, sin)
        turned = tuple(one.transpose(1, 2) for one in turned) if axis == 2 else turned
        return turned if len(turned) > 1 else turned[0]

    return rotary
