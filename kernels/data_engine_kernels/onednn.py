"""fp32 products on CPU by oneDNN, with weights that it has laid out beforehand: what torch's own compiler uses there.

The plain product lays the weight out anew in each call: for ten rows that takes several times as long as the product.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# Of each weight that was asked for by `packed`: its version, and its packed copy.
_PACKED = WeakTensorKeyDictionary()


def can_pack(weight_VD: Tensor) -> bool:
    """Whether this weight is one of those, and torch was built with what it takes."""
    here = weight_VD.device.type == "cpu" and weight_VD.dtype == torch.float32
    return here and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack(weight_VD: Tensor) -> Tensor:
    """The weight in oneDNN's layout, which `product` takes and nothing else."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_VD, None)


def packed(weight_VD: Tensor) -> Tensor:
    """`pack`, once for each state of a weight; the copy goes with the weight."""
    if weight_VD.is_inference():
        # It tells of no changes.
        return pack(weight_VD)
    found = _PACKED.get(weight_VD)
    if found is None or found[0] != weight_VD._version:
        _PACKED[weight_VD] = found = weight_VD._version, pack(weight_VD.detach())
    return found[1]


def product(rows: Tensor, packed_weight: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """rows [..., D] @ weight^T + bias -> [..., V]."""
    return torch.ops.mkldnn._linear_pointwise(rows, packed_weight, bias_V, "none", [], "")
