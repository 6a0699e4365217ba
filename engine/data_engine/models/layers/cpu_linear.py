"""Linear layers of a decoder on CPU in fp32, by oneDNN's product with a packed weight (kernels' onednn.py)."""

import torch
from torch import Tensor, nn

from data_engine.models.checkpoints.allocation import return_freed_memory
from data_engine.models.layers.linear_uses import with_weights_read
from data_engine_kernels import onednn

# Freed memory is returned to the system whenever this much of replaced weights was freed.
MAX_FREED_BYTES = 1 << 24


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
                return_freed_memory()
                freed_bytes = 0
