"""The cache that a decoder is handed in a pass of answers. It keeps no keys and values, since the layouts do.

A Cache is handed over all the same: without one, transformers takes position ids that begin anew for packed sequences,
and cuts answers off from their prompts; and layers with a recurrent state keep it here, a row of it an answer.
"""

import copy
import inspect
from collections.abc import Callable, Sequence

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionCacheLayerMixin
from transformers.generation import GenerationMixin

from data_engine.models.layers.attention import DoesNotFit

STATES = ("conv_states", "recurrent_states")
# By which name models of transformers take a cache: 5.24 renamed it, and warns of the former one at each call.
CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)


class PassingLayer(DynamicLayer):
    """Hands new keys and values through, and counts as empty, so that no place in a pass is taken for a late one."""

    def __init__(self, cross: tuple[Tensor, Tensor] | None = None) -> None:
        """`cross`: keys and values of image states, which Mllama looks for here before it runs such a layer."""
        super().__init__()
        self._num_keys = 0
        if cross is not None:
            self.keys, self.values = cross
            self.is_initialized = True
            self._num_keys = self.keys.shape[2]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self._num_keys

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0


class PassingCache(Cache):
    """A cache of PassingLayers. It does not ask which layer calls, so that one compiled layer serves all."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class CrossingCache(Cache):
    """A cache with keys of image states. Asked for its length as a whole, it gives theirs: with transformers
    5.17, Mllama looks there for whether it has any, and not in the layer.
    """

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        if layer_idx is not None:
            return super().get_seq_length(layer_idx)
        return max(layer.get_seq_length() for layer in self.layers)


def passing(num_layers: int) -> Cache:
    """A cache of layers that keep nothing."""
    return PassingCache(layers=[PassingLayer()] * num_layers)


def require_shareable(layers: Sequence[object]) -> None:
    """Raise DoesNotFit where a layer of a prompt's cache keeps what answers cannot share."""
    for layer in layers:
        # `update_indexer` of transformers' own class, `update_index` of MiniMax M3's.
        if any(name.startswith("update_index") for name in dir(layer)):
            raise DoesNotFit("its layers choose keys by an index of their own")
        if isinstance(layer, LinearAttentionCacheLayerMixin) and isinstance(layer, DynamicLayer):
            raise DoesNotFit("a layer has both keys and a recurrent state")


def is_recurrent(layer: object) -> bool:
    """Whether a layer of a cache holds a recurrent state."""
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return False
    return any(isinstance(value, Tensor) for name in STATES for value in getattr(layer, name).values())


def mapped(layer: LinearAttentionCacheLayerMixin, function: Callable[[Tensor], Tensor]):
    """A layer with each tensor of its state replaced by function(tensor)."""
    new = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            value = {key: function(one) if isinstance(one, Tensor) else one for key, one in value.items()}
        setattr(new, name, value)
    return new


def tensors(layer: LinearAttentionCacheLayerMixin) -> list[Tensor]:
    """The tensors of its state, in a fixed order; the first dimension counts rows."""
    return [one for name in STATES for one in getattr(layer, name).values() if isinstance(one, Tensor)]


class RowStates:
    """Recurrent states of R rows, by layer of the cache: buffers that are made once and updated in place."""

    def __init__(self, like: Sequence[object], num_rows: int) -> None:
        """`like`: the layers of a prompt's cache."""
        self.layers = [
            mapped(layer, lambda one: one.new_zeros(num_rows, *one.shape[1:])) if is_recurrent(layer) else None
            for layer in like
        ]

    def fill(self, rows: Tensor, like: Sequence[object]) -> None:
        """Give the rows the states that a prompt left."""
        for mine, theirs in zip(self.layers, like, strict=True):
            if mine is not None:
                for buffer, state in zip(tensors(mine), tensors(theirs), strict=True):
                    buffer[rows] = state.to(buffer.dtype)

    def move(self, source: int, target: int) -> None:
        """Row `source` becomes row `target`."""
        for layer in self.layers:
            for buffer in tensors(layer) if layer is not None else ():
                buffer[target] = buffer[source]

    def first(self, num_rows: int) -> list[object | None]:
        """By layer of the cache, views of the first rows' state, which a pass updates in place; None: no state."""
        return [None if layer is None else mapped(layer, lambda one: one[:num_rows]) for layer in self.layers]


def answer_cache(
    like: Sequence[object], states: Sequence[object | None], crosses: dict[int, tuple[Tensor, Tensor]]
) -> Cache:
    """The cache of a pass of answers behind their prompts, with a state by layer where it has one.

    `like`: the layers of a prompt's cache. `crosses`: by layer of the cache, keys and values of image states.
    """
    if not any(states) and not crosses:
        return passing(len(like))
    usual = PassingLayer()
    kind = CrossingCache if crosses else Cache
    return kind(
        layers=[
            states[number] if states and states[number] is not None
            else PassingLayer(crosses[number]) if number in crosses
            else usual
            for number in range(len(like))
        ]
    )  # fmt: skip


def repeated(layers: Sequence[object], num_rows: int) -> list[object | None]:
    """By layer of the cache, its state copied for so many rows; None: no state."""
    return [
        mapped(layer, lambda one: one.repeat_interleave(num_rows, 0)) if is_recurrent(layer) else None
        for layer in layers
    ]


def nbytes(layers: Sequence[object]) -> int:
    """Of the recurrent states of a row."""
    return sum(one.nbytes for layer in layers if is_recurrent(layer) for one in tensors(layer))
