"""Linear layers in the layout of kernels/onednn.py, for a decoder on CPU in fp32."""

import contextlib
import ctypes

import torch
from torch import Tensor, nn

from data_engine_kernels import onednn

# So much of replaced weights may stay in the heap.
MOST_KEPT_BYTES = 1 << 24


class PackedLinear(nn.Linear):
    """A linear layer whose weight is packed: once and for all, or in each call where the weight comes and goes."""

    packed_weight: Tensor | None = None

    def forward(self, rows: Tensor) -> Tensor:
        weight = onednn.pack(self.weight) if self.packed_weight is None else self.packed_weight
        return onednn.product(rows, weight, self.bias)


def pack_linears(decoder: nn.Module, *, once: bool) -> None:
    """Make every linear layer of a decoder a packed one, where that can be.

    With `once`, the packed weights take the place of the others. Without, as ZeRO-3 needs it, weights are packed in
    each call: slower than not at all, but the numbers are then those of a decoder that is not split.
    """
    kept_bytes = 0
    for layer in [module for module in decoder.modules() if type(module) is nn.Linear]:
        if not onednn.can_pack(layer.weight):
            continue
        layer.__class__ = PackedLinear
        if once:
            kept_bytes += layer.weight.nbytes
            layer.packed_weight = onednn.pack(layer.weight.detach())
            # What is left of it counts as a weight of its shape, and can be mistaken for no other.
            layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"), requires_grad=False)
            if kept_bytes > MOST_KEPT_BYTES:
                _return_freed_memory()
                kept_bytes = 0


def _return_freed_memory() -> None:
    """Have glibc give what was freed between tensors that stay back to the system."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
