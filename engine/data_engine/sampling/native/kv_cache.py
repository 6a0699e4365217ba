"""Where the sampling loop keeps keys, values and the state of its rows: buffers made once, at addresses that stay.

A prefix is stored once, and read by all rows of its question, which name its slot; a row's own tokens are its suffix.
Their keys and values lie in one pool of pages where the kernels are (page_pool.py), and in a buffer for each slot and
row where plain torch reads them as slices.

Shapes: Q slots, R rows, G key/value heads, P prefix and S suffix tokens at most, D head width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from data_engine.models.base import VisionLanguageModel
from data_engine.models.device import sent
from data_engine.models.layers.answer_cache import RowStates, answer_cache, is_recurrent
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.layers.noting import Noted
from data_engine.models.layers.prefix import Prefix

# Prefixes kept for each that the rows would need if no answer of a question outlived the others. Answers of very
# different length (log-normal, p95 twice the mean) would keep up to 2.3 times as many alive.
STRAGGLERS = 2.5
# Lengths of buffers are rounded up to it, so that the next unit rarely needs longer ones.
ROUND = 64


def num_slots(num_rows: int, answers_per_question: int) -> int:
    """How many prefixes are kept for so many rows, where each has a buffer as long as the longest."""
    return int(STRAGGLERS * num_rows / answers_per_question) + 2


def buffers(model: VisionLanguageModel, number: int, length: int) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values by layer, [number, G, length, D]; groups and widths are the layer's own.

    A layer that uses the keys of another has the same buffers; one that looks at image states alone has none.
    """
    keys, values = [], []
    for kind in model.layers:
        for made, width in ((keys, kind.key_width), (values, kind.value_width)):
            shared = kind.same_as is not None
            size = 0 if kind.cross else number
            made.append(made[kind.same_as] if shared else zeros(model, size, kind.groups, length, width))
    return keys, values


def zeros(model: VisionLanguageModel, *size: int) -> Tensor:
    """Zeros: what lies beyond a length is multiplied by 0 in places, and 0 x NaN is NaN."""
    return torch.zeros(size, device=model.device, dtype=model.dtype)


def own_layers(kinds: Sequence[LayerKind], prefix: Prefix) -> list[tuple[int, Noted]]:
    """What a prompt noted of the layers that have buffers of their own."""
    return [
        (layer, noted) for layer, noted in prefix.layers.items() if not noted.cross and kinds[layer].same_as is None
    ]


def crosses(prefix: Prefix) -> dict[int, Noted]:
    """What a prompt noted of image states, by layer."""
    return {layer: noted for layer, noted in prefix.layers.items() if noted.cross}


def each_once(*caches: Sequence[Tensor]) -> list[Tensor]:
    """The buffers of all layers that have one."""
    return list({id(cache): cache for layers in caches for cache in layers if len(cache)}.values())


class Kept(Protocol):
    """Where keys and values lie: SlotBuffers or page_pool.PagePool."""

    suffix_tokens: int
    """S"""

    def store(self, slot: int, prefix: Prefix, pages: Sequence[int]) -> bool:
        """Keep those of a prompt, in these pages where there are any; True if a step reads other addresses now."""

    def forget(self, slot: int) -> None:
        """Free the image states of a prompt that no row reads."""

    def image_states(self) -> dict[int, tuple[Tensor, Tensor]]:
        """By layer, keys and values [1, G, S, D] of those of some prompt."""

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source` becomes row `target`, its first `length` suffix tokens with it."""

    def suffixes(self) -> list[Tensor]:
        """Every buffer that suffixes lie in once, by rows or by pages."""


class SlotBuffers:
    """By layer, prefix keys and values [Q, G, P, D], and suffix keys and values [R, G, S, D]."""

    def __init__(self, model: VisionLanguageModel, num_rows: int, num_slots: int, suffix_tokens: int) -> None:
        self._model, self._kinds = model, tuple(model.layers)
        self.suffix_tokens, self.prefix_tokens = suffix_tokens, 0
        self.suffix_keys, self.suffix_values = buffers(model, num_rows, suffix_tokens)
        self.prefix_keys, self.prefix_values = buffers(model, num_slots, 0)
        self.crosses: list[dict[int, Noted]] = [{} for _ in range(num_slots)]
        """of each slot, by layer, what was noted of image states"""

    def reserve(self, prefix_tokens: int) -> bool:
        """Make room for prefixes of this length; True if the buffers had to move."""
        if prefix_tokens <= self.prefix_tokens:
            return False
        longer = -(-prefix_tokens // ROUND) * ROUND
        # Layer by layer, so that old and new are never there as a whole at the same time.
        for caches in (self.prefix_keys, self.prefix_values):
            for layer, kind in enumerate(self._kinds):
                if kind.same_as is not None:
                    caches[layer] = caches[kind.same_as]
                    continue
                old = caches[layer]
                caches[layer] = zeros(self._model, old.shape[0], kind.groups, longer, old.shape[-1])
                caches[layer][:, :, : self.prefix_tokens] = old
        self.prefix_tokens = longer
        return True

    def store(self, slot: int, prefix: Prefix, pages: Sequence[int]) -> bool:
        moved, length = self.reserve(prefix.length), prefix.length
        self.crosses[slot] = crosses(prefix)
        for layer, noted in own_layers(self._kinds, prefix):
            self.prefix_keys[layer][slot, :, :length] = noted.keys
            self.prefix_values[layer][slot, :, :length] = noted.values
        return moved

    def forget(self, slot: int) -> None:
        self.crosses[slot] = {}

    def image_states(self) -> dict[int, tuple[Tensor, Tensor]]:
        some = next((noted for noted in self.crosses if noted), {})
        return {layer: (noted.keys[None], noted.values[None]) for layer, noted in some.items()}

    def move(self, source: int, target: int, length: int) -> None:
        for cache in self.suffixes():
            cache[target, :, :length] = cache[source, :, :length]

    def suffixes(self) -> list[Tensor]:
        return each_once(self.suffix_keys, self.suffix_values)


class KVCache:
    """Keys and values, and beside them what the rows are at, and what the prompts of the slots left."""

    def __init__(self, model: VisionLanguageModel, num_rows: int, num_slots: int, kept: Kept) -> None:
        device = model.device
        self.dtype, self.kinds = model.dtype, tuple(model.layers)
        self.num_rows, self.num_slots, self.kept = num_rows, num_slots, kept
        self.prefix_lengths_Q = torch.zeros(num_slots, dtype=torch.long, device=device)
        # Where an answer goes on: not the prefix's length where an image takes fewer positions than tokens.
        self.next_positions_Q = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.first_logits_QV = torch.zeros(num_slots, len(model.head.weight), device=device)
        # Of each slot, transformers' cache layers with their states.
        self.prompt_states: list[Sequence[object]] = [()] * num_slots
        recurrent = any(is_recurrent(layer) for layer in model.cache_layers)
        self.states = RowStates(model.cache_layers, num_rows) if recurrent else None
        # Of each row: its newest token, its random-number key, how many tokens it has, its slot, where it is to end.
        self.state_5R = torch.zeros(5, num_rows, dtype=torch.long, device=device)
        self.tokens_R, self.keys_R, self.lengths_R, self.slots_R, self.ends_R = self.state_5R
        self.lengths_R.fill_(1)

    def store(self, slot: int, prefix: Prefix, pages: Sequence[int] = ()) -> bool:
        """Keep what a prompt left behind; True if a step reads other addresses now."""
        self.prompt_states[slot] = prefix.end.cache_layers if self.states else ()
        # Not `[slot] = length`: a number that is written to one place, or to some, makes the host wait for a GPU.
        self.prefix_lengths_Q[slot].fill_(prefix.length)
        self.next_positions_Q[slot].fill_(prefix.end.next_position)
        return self.kept.store(slot, prefix, pages)

    def forget(self, slot: int) -> None:
        """Free what a prompt left that no row reads, as far as it has no place of its own: that stays with the slot."""
        self.kept.forget(slot)
        self.prompt_states[slot] = ()

    def start(self, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Give rows that begin the recurrent states of their prompts."""
        if self.states:
            for slot in dict.fromkeys(slots):
                # Chosen on the host: by a mask on the device, it would wait for how many there are.
                its_rows = [row for row, its_slot in zip(rows, slots, strict=True) if its_slot == slot]
                self.states.fill(sent(torch.tensor(its_rows), self.slots_R.device), self.prompt_states[slot])

    def answer_cache(self, num_rows: int, like: Sequence[object]) -> Cache:
        """What the decoder is handed for a step of the first rows; `like`: the model's cache_layers."""
        # Which image states a layer is handed does not matter: the layout has those of each row.
        return answer_cache(like, self.states.first(num_rows) if self.states else (), self.kept.image_states())

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source` becomes row `target`, its first `length` suffix tokens with it."""
        self.kept.move(source, target, length)
        if self.states:
            self.states.move(source, target)
        self.state_5R[:, target] = self.state_5R[:, source]
