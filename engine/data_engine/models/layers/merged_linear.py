"""Linear layers of a decoder on a GPU: those that one module calls with one tensor become one product.

Queries, keys and values of an attention layer, and gate and up of an MLP, are each a product of the same rows. A step
multiplies few rows, so a product is bound by its launch and its weight, and one over all the weights fills the device
better than three. The code of transformers stays as it is: the first layer that is called computes all, and the others
are handed their part.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_engine.models.layers.linear_uses import calls_with_one_tensor, with_weights_read

# Names of layers that go together, in transformers' models.
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
# Freed weights are returned to the device whenever so much was replaced: those kept for reuse are too small for it.
MAX_FREED_BYTES = 1 << 28


class Product:
    """The one product of several layers, over the rows that they are all called with.

    What is kept from the first call to the last belongs to the one tensor that was given, compared by identity while it
    is kept alive, and each layer is handed its part once. Whatever else happens, the part is computed anew.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        has_bias = layers[0].bias is not None
        self.bias = torch.cat([layer.bias.detach() for layer in layers]) if has_bias else None
        self._rows: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def part(self, number: int, rows: Tensor) -> Tensor:
        """What the layer of that number makes of the rows [..., D]: a view [..., its size] of the whole product."""
        if self._rows is not rows or number not in self._waiting:
            self.clear()
            parts = F.linear(rows, self.weight, self.bias).split(self.sizes, -1)
            self._rows, self._waiting = rows, dict(enumerate(parts))
        found = self._waiting.pop(number)
        if not self._waiting:
            self.clear()
        return found

    def clear(self) -> None:
        """Keep nothing."""
        self._rows, self._waiting = None, {}


class MergedLinear(nn.Linear):
    """A linear layer whose weight is a part of a product's, and stays readable as its own."""

    product: Product
    number: int

    def forward(self, rows: Tensor) -> Tensor:
        return self.product.part(self.number, rows)


def merges_linears(device: torch.device, *, split: bool) -> bool:
    """Whether layers are merged: always on a GPU, but for weights that are gathered for each call.

    It follows from the kind of device alone, since a merged product may round otherwise.
    """
    return device.type == "cuda" and not split


def merge_linears(decoder: nn.Module) -> int:
    """Merge the layers of a decoder that can be, one module after the other; how many products that makes.

    A weight is held once: that of a layer becomes a view of the product's. Layers that are quantised, packed, hooked or
    shared, and modules whose code calls them otherwise, stay as they are.
    """
    made = freed_bytes = 0
    for owner, layers in list(_mergeable(decoder)):
        product = Product(layers)
        for number, (layer, weight) in enumerate(zip(layers, product.weight.split(product.sizes), strict=True)):
            layer.__class__ = MergedLinear
            layer.product, layer.number = product, number
            layer.weight = nn.Parameter(weight, requires_grad=False)
            if product.bias is not None:
                bias = product.bias.split(product.sizes)[number]
                layer.bias = nn.Parameter(bias, requires_grad=False)
        # Also where the module ends by an exception: an attempt that exceeds the memory leaves nothing.
        owner.register_forward_hook(lambda *_, product=product: product.clear(), always_call=True)
        made, freed_bytes = made + 1, freed_bytes + product.weight.nbytes
        if product.weight.is_cuda and freed_bytes > MAX_FREED_BYTES:
            torch.cuda.empty_cache()
            freed_bytes = 0
    return made


def _mergeable(decoder: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Linear]]]:
    read_elsewhere = with_weights_read(decoder)
    for owner in decoder.modules():
        for names in TOGETHER:
            layers = [getattr(owner, name, None) for name in names]
            if not all(type(layer) is nn.Linear and layer not in read_elsewhere for layer in layers):
                continue
            if _are_alike(layers) and calls_with_one_tensor(type(owner), names):
                yield owner, layers


def _are_alike(layers: Sequence[nn.Linear]) -> bool:
    """Whether their weights can be one, and nothing else looks at what they are given or give."""
    kinds = {(one.weight.shape[1], one.weight.dtype, one.weight.device, one.bias is None) for one in layers}
    hooked = any(one._forward_hooks or one._forward_pre_hooks or "forward" in vars(one) for one in layers)
    return len(kinds) == 1 and not hooked and len({id(one.weight) for one in layers}) == len(layers)
