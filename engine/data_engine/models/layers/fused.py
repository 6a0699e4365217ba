"""Small operations of a decoder on a GPU: norms, rotary embedding and the product of an MLP, one launch each.

As the code of transformers writes them, they are 28 of the 38 launches of a LLaMA layer (kernels/README.md). That code
stays as it is: a module whose class does, word for word, what that of LLaMA does, runs the kernel instead. Numbers are
rounded where they were, so a kernel stands for its code in prompts, in steps and in scoring alike.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from types import FunctionType

from torch import Tensor, nn

from data_engine_kernels import apply_rotary, rms_norm, silu_and_mul

# What attention modules of transformers call, by this name.
ROTARY = "apply_rotary_pos_emb"


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
    from transformers.activations import SiLUActivation
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    kind = type(module)
    if not isinstance(kind.forward, FunctionType) or "forward" in vars(module):
        return None
    if _same_code(kind.forward, LlamaRMSNorm.forward):
        return _norm
    if _same_code(kind.forward, GemmaRMSNorm.forward) and _same_code(kind._norm, GemmaRMSNorm._norm):
        return _centered_norm
    if _same_code(kind.forward, LlamaMLP.forward):
        return _mlp if isinstance(module.act_fn, nn.SiLU | SiLUActivation) else None
    return _attention(kind.forward) if ROTARY in kind.forward.__code__.co_names else None


@functools.cache
def _with_forward(kind: type[nn.Module], forward: Callable) -> type[nn.Module]:
    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _norm(self: nn.Module, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _centered_norm(self: nn.Module, x: Tensor) -> Tensor:
    return rms_norm(x, self.weight, self.eps, centered=True)


def _mlp(self: nn.Module, x: Tensor) -> Tensor:
    return self.down_proj(silu_and_mul(self.gate_proj(x), self.up_proj(x)))


@functools.cache
def _attention(forward: FunctionType) -> Callable | None:
    """The same code, for which the name of the rotary embedding means the kernel."""
    from transformers.models.llama import modeling_llama

    plain = forward.__globals__.get(ROTARY)
    if not isinstance(plain, FunctionType) or not _same_code(plain, getattr(modeling_llama, ROTARY)):
        return None
    if not _same_code(plain.__globals__.get("rotate_half"), modeling_llama.rotate_half):
        return None

    @functools.wraps(plain)
    def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *more, **options) -> tuple[Tensor, Tensor]:
        usual = not more and not options and query.dim() == key.dim() == 4 and cos.dim() == sin.dim() == 3
        return apply_rotary(query, key, cos, sin) if usual else plain(query, key, cos, sin, *more, **options)

    known = forward.__globals__ | {ROTARY: rotary}
    made = FunctionType(forward.__code__, known, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    return functools.update_wrapper(made, forward)


def _same_code(one: object, other: FunctionType) -> bool:
    """Whether two functions do the same word for word, whatever they call their variables."""
    return one is other or (isinstance(one, FunctionType) and _code(one) is not None and _code(one) == _code(other))


@functools.cache
def _code(function: FunctionType) -> tuple[str, ...] | None:
    """The statements of a function, with numbers for names of its variables; None where it cannot be read."""
    try:
        [found] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    body = found.body[1:] if ast.get_docstring(found) is not None else found.body
    names = [node.arg for node in ast.walk(found.args) if isinstance(node, ast.arg)]
    stored = [node for part in body for node in ast.walk(part) if isinstance(node, ast.Name)]
    names += [node.id for node in stored if isinstance(node.ctx, ast.Store)]
    numbers = {name: f"variable {number}" for number, name in enumerate(dict.fromkeys(names))}
    for node in stored:
        node.id = numbers.get(node.id, node.id)
    return tuple(map(ast.dump, body))
