"""Linear layers of a decoder on CPU in fp32, by oneDNN's product with a packed weight (kernels' onednn.py)."""

import ast
import contextlib
import ctypes
import functools
import inspect
import re
from types import ModuleType

import torch
from torch import Tensor, nn

from data_engine_kernels import onednn

# Freed memory is returned to the system whenever this much of replaced weights was freed.
MAX_FREED_BYTES = 1 << 24
# `self.NAME.weight` in code, but for questions about its kind.
_WEIGHT_READ = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|ndim)\b)")


class PackedLinear(nn.Linear):
    """A linear layer whose weight is packed, once or in each call."""

    packed_weight: Tensor | None = None
    """None: `weight` is packed in each call"""

    def forward(self, rows: Tensor) -> Tensor:
        weight = onednn.pack(self.weight) if self.packed_weight is None else self.packed_weight
        return onednn.product(rows, weight, self.bias)


def pack_linears(decoder: nn.Module, *, once: bool) -> None:
    """Make every linear layer of a decoder a packed one, where oneDNN can pack its weight.

    With `once`, packed weights replace the others. Without, as ZeRO-3 needs it, weights are packed in each call, which
    is slower than plain layers, but gives the same numbers as a decoder that is not split.
    """
    freed_bytes, read_elsewhere = 0, with_weights_read(decoder)
    for layer in [module for module in decoder.modules() if type(module) is nn.Linear]:
        if not onednn.can_pack(layer.weight) or layer in read_elsewhere:
            continue
        layer.__class__ = PackedLinear
        if once:
            freed_bytes += layer.weight.nbytes
            layer.packed_weight = onednn.pack(layer.weight.detach())
            # A meta tensor of its shape replaces the original, so shape queries work and any use of it fails.
            layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"), requires_grad=False)
            if freed_bytes > MAX_FREED_BYTES:
                _return_freed_memory()
                freed_bytes = 0


def with_weights_read(decoder: nn.Module) -> set[nn.Module]:
    """The layers whose weight the module that holds them reads itself, as Gemma 3n does."""
    return {
        layer
        for owner in decoder.modules()
        for name in _names_read(type(owner))
        if isinstance(layer := getattr(owner, name, None), nn.Linear)
    }


def _names_read(kind: type) -> set[str]:
    """NAME of each _WEIGHT_READ in the code of a class."""
    return _names_by_class(inspect.getmodule(kind)).get(kind.__name__, set())


@functools.cache
def _names_by_class(module: ModuleType) -> dict[str, set[str]]:
    """The same of all classes of a module: inspect.getsource(kind) parses the whole file, 0.1 s, for each one again."""
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        return {}
    found: dict[str, set[str]] = {}
    # Few files have any, and the others need not be parsed.
    if _WEIGHT_READ.search(source):
        lines = source.splitlines(keepends=True)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                code = "".join(lines[node.lineno - 1 : node.end_lineno])
                found.setdefault(node.name, set()).update(_WEIGHT_READ.findall(code))
    return found


def _return_freed_memory() -> None:
    """Make glibc return freed memory between live tensors to the system."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
