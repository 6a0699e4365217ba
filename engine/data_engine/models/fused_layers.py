"""RMSNorm and gated activation of a decoder's layers as one kernel each. Off: no GPU has timed it yet.

`make bench-gpu` times it beside plain layers (kernels/bench/layers.py); `FUSED = True` turns it on on CUDA. Bits then
differ from plain layers': both round once, to the model's dtype, where the code of transformers rounds between its
steps too. Rotary embeddings stay as they are: each file of transformers calls its own function for them.
"""

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

FUSED = False


def fuse_layers(decoder: nn.Module) -> tuple[int, int]:
    """Replace the forward of norms and MLPs whose code is LLaMA's; how many of each that were.

    A norm becomes torch's own rms_norm, whose kernel on CUDA reads and writes its rows once; silu(gate) * up of an MLP
    becomes one kernel, by torch.compile, which compiles at its first call. Others stay as they are.
    """
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    norms = [module for module in decoder.modules() if _has_code_of(type(module), LlamaRMSNorm)]
    mlps = [
        module
        for module in decoder.modules()
        if _has_code_of(type(module), LlamaMLP) and isinstance(module.act_fn, (nn.SiLU, type(ACT2FN["silu"])))
    ]
    for module in norms:
        module.forward = types.MethodType(_norm, module)
    for module in mlps:
        module.forward = types.MethodType(_mlp, module)
    return len(norms), len(mlps)


def _norm(module: nn.Module, rows: Tensor) -> Tensor:
    """w x / sqrt(mean(x^2) + eps) over the last axis, computed in fp32. Source: arXiv:1910.07467."""
    return F.rms_norm(rows, module.weight.shape, module.weight, module.variance_epsilon)


def _mlp(module: nn.Module, rows: Tensor) -> Tensor:
    return module.down_proj(gated()(module.gate_proj(rows), module.up_proj(rows)))


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up"""
    return F.silu(gate) * up


@functools.cache
def gated() -> Callable[[Tensor, Tensor], Tensor]:
    """silu_times as one kernel for any number of rows."""
    return torch.compile(silu_times, dynamic=True, fullgraph=True)


def _has_code_of(kind: type[nn.Module], known: type[nn.Module]) -> bool:
    found = _code(kind)
    return found is not None and found == _code(known)


@functools.cache
def _code(kind: type[nn.Module]) -> str | None:
    """The statements of a module's forward and its arguments' names; None where they cannot be read."""
    try:
        [function] = ast.parse(textwrap.dedent(inspect.getsource(kind.forward))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    names = [argument.arg for argument in function.args.args]
    return " ".join([*names, *map(ast.dump, function.body)])
