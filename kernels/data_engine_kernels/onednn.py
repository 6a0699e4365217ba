"""fp32 products on CPU by oneDNN with prepacked weights, as torch.compile uses it there.

The plain product packs the weight in each call: for ten rows that takes several times as long as the product itself.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# Weight -> its version when `packed` packed it, and the packed copy.
_PACKED = WeakTensorKeyDictionary()


def can_pack(weight_VD: Tensor) -> bool:
    """Whether this is an fp32 weight on CPU, and torch was built with oneDNN."""
    fits = weight_VD.device.type == "cpu" and weight_VD.dtype == torch.float32
    return fits and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack(weight_VD: Tensor) -> Tensor:
    """The weight in oneDNN's layout, which only `product` can read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_VD, None)


def packed(weight_VD: Tensor) -> Tensor:
    """`pack`, cached until the weight changes or is freed."""
    if weight_VD.is_inference():
        # Inference tensors have no version, so a change would not be noticed.
        return pack(weight_VD)
    found = _PACKED.get(weight_VD)
    if found is None or found[0] != weight_VD._version:
        _PACKED[weight_VD] = found = weight_VD._version, pack(weight_VD.detach())
    return found[1]


def product(rows: Tensor, packed_weight: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """rows [..., D] @ weight^T + bias -> [..., V]."""
    return torch.ops.mkldnn._linear_pointwise(rows, packed_weight, bias_V, "none", [], "")
