"""The layouts of a prompt (attention.py): what its layers keep is noted, for the answers behind it.

Shapes: B batch, H query heads, G key/value heads, S tokens, P prompt tokens, D head width.
"""

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from data_engine.models.layers.attention import DoesNotFit, LayerCall, layout_in_force, plain


class Noted(NamedTuple):
    """What a prompt leaves behind in one layer."""

    keys: Tensor
    """[G, P, D]; of a layer that looks at image states alone, theirs"""
    values: Tensor
    cross: bool = False
    """the layer looks at image states alone"""
    bias: Tensor | None = None
    """of such a layer: how the prompt's last token sees them [1, S]; None: all of them"""


class Noting:
    """The layout of a prompt: the model's own attention, and each layer's keys and values noted."""

    describes_masks = False

    def __init__(self, length: int) -> None:
        """`length`: P."""
        self.length = length
        self.noted: dict[int, Noted] = {}

    def attend(self, call: LayerCall) -> Tensor:
        call.require_known()
        if call.layer in self.noted:
            raise DoesNotFit("a layer runs twice in a pass")
        cross = call.key.shape[2] != self.length
        bias = None
        if cross and call.mask is not None:
            # A copy, which does not keep the mask of the whole prompt alive.
            bias = replace(call, mask=call.mask[..., -1:, :]).bias.expand(1, 1, -1, -1)[0, 0].clone()
        keys, values = self.kept(call.key[0]), self.kept(call.value[0])
        self.noted[call.layer] = Noted(keys, values, cross, bias)
        return plain(call)

    def forget(self) -> None:
        """Nothing was noted."""
        self.noted.clear()

    def kept(self, part: Tensor) -> Tensor:
        """The tensor, copied where it would keep a larger one alive, as that of a merged product is."""
        return part.clone() if part.untyped_storage().nbytes() > part.nbytes else part


def forget() -> None:
    """Drop what was noted of a prompt that failed: it is run again under the same layout."""
    layout = layout_in_force()
    if isinstance(layout, Noting):
        layout.forget()


class Finding(Noting):
    """The layout of a first prompt: numbers the modules that attend, in the order of their calls."""

    def __init__(self, length: int, modules: set[nn.Module]) -> None:
        super().__init__(length)
        self.layers = _Numbered(modules)

    def forget(self) -> None:
        super().forget()
        self.layers.clear()

    def kept(self, part: Tensor) -> Tensor:
        """As it is: a layer that uses another's keys is known by being handed the same tensor."""
        return part


class Asking:
    """The layout of a first token behind a prompt, for what each layer does: nothing is computed."""

    describes_masks = True

    def __init__(self) -> None:
        self.calls: dict[int, LayerCall] = {}

    def attend(self, call: LayerCall) -> Tensor:
        self.calls[call.layer] = call
        return call.query.new_zeros(*call.query.shape[:-1], call.value.shape[-1])


class _Numbered(dict):
    """A number for each of some modules, given when it is first asked for."""

    def __init__(self, modules: set[nn.Module]) -> None:
        super().__init__()
        self._modules = modules

    def get(self, module: nn.Module, default: object = None) -> int | None:
        return self.setdefault(module, len(self)) if module in self._modules else default
