"""Where the sampling loop keeps keys, values and the state of its rows: buffers made once, at addresses that stay.

A prefix lies in a slot, and is read by all rows of its question; a row's own tokens, its suffix, lie in pages. Where
plain torch reads suffixes as slices, a page is as long as an answer may get, and each row has the one of its number.

Shapes: Q slots, R rows, N pages, C pages of a row at most, G key/value heads, P prefix tokens at most, S tokens of a
page, D head width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from data_engine.models.answer_cache import RowStates, answer_cache, is_recurrent
from data_engine.models.attention import Noted
from data_engine.models.base import VisionLanguageModel
from data_engine.models.prefix import Prefix
from data_engine.sampling.native import page_allocator as pages

# Prefixes kept for each that the rows would need if no answer of a question outlived the others. Answers of very
# different length (log-normal, p95 twice the mean) would keep up to 2.3 times as many alive.
STRAGGLERS = 2.5
# Lengths of buffers are rounded up to it, so that the next unit rarely needs longer ones.
ROUND = 64


def num_slots(num_rows: int, answers_per_question: int) -> int:
    """How many prefixes are kept for so many rows."""
    return int(STRAGGLERS * num_rows / answers_per_question) + 2


class KVCache:
    """By layer, prefix keys and values [Q, G, P, D] and suffix keys and values [N, G, S, D]; the rows' state.

    Groups and widths are the layer's own. A layer that uses the keys of another has the same buffers; one that looks at
    image states alone has none, and what a prompt left of them lies in `crosses`.
    """

    def __init__(
        self, model: VisionLanguageModel, num_rows: int, num_slots: int, suffix_tokens: int, paged: bool = False
    ) -> None:
        device = model.device
        self.dtype, self.kinds = model.dtype, tuple(model.layers)
        self.num_rows, self.num_slots, self.suffix_tokens = num_rows, num_slots, suffix_tokens
        self.paged, self.page_tokens = paged, pages.PAGE if paged else suffix_tokens
        # Page 0 is a dummy, for padding rows.
        self.num_pages = 1 + pages.num_pages(num_rows, suffix_tokens) if paged else num_rows
        self._empty = torch.empty(0, device=device, dtype=model.dtype)
        self.suffix_keys, self.suffix_values = self._buffers(self.num_pages, self.page_tokens)
        self.prefix_keys, self.prefix_values = self._buffers(num_slots, 0)
        self.prefix_tokens = 0
        self.prefix_lengths_Q = torch.zeros(num_slots, dtype=torch.long, device=device)
        # Where an answer goes on: not the prefix's length where an image takes fewer positions than tokens.
        self.next_positions_Q = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.first_logits_QV = torch.zeros(num_slots, len(model.head.weight), device=device)
        # Of each slot, by layer, what was noted of image states; and transformers' cache layers with their states.
        self.crosses: list[dict[int, Noted]] = [{} for _ in range(num_slots)]
        self.prompt_states: list[Sequence[object]] = [()] * num_slots
        recurrent = any(is_recurrent(layer) for layer in model.cache_layers)
        self.states = RowStates(model.cache_layers, num_rows) if recurrent else None
        # Of each row: its pages in order.
        self.pages_RC = torch.arange(num_rows, device=device)[:, None]
        if paged:
            self.pages_RC = torch.zeros(num_rows, pages.pages_of(suffix_tokens), dtype=torch.long, device=device)
        # Of each row: its newest token, its random-number key, how many tokens it has, its slot, where it is to end.
        self.state_5R = torch.zeros(5, num_rows, dtype=torch.long, device=device)
        self.tokens_R, self.keys_R, self.lengths_R, self.slots_R, self.ends_R = self.state_5R
        self.lengths_R.fill_(1)

    def _buffers(self, number: int, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values by layer."""
        keys, values = [], []
        for kind in self.kinds:
            for buffers, width in ((keys, kind.key_width), (values, kind.value_width)):
                shared = kind.same_as is not None
                size = 0 if kind.cross else number
                buffers.append(buffers[kind.same_as] if shared else self._zeros(size, kind.groups, length, width))
        return keys, values

    def _zeros(self, *size: int) -> Tensor:
        # Zeros: what lies beyond a length is multiplied by 0 in places, and 0 x NaN is NaN.
        return self._empty.new_zeros(size)

    def reserve(self, prefix_tokens: int) -> bool:
        """Make room for prefixes of this length; True if the buffers had to move."""
        if prefix_tokens <= self.prefix_tokens:
            return False
        longer = -(-prefix_tokens // ROUND) * ROUND
        # Layer by layer, so that old and new are never there as a whole at the same time.
        for caches in (self.prefix_keys, self.prefix_values):
            for layer, kind in enumerate(self.kinds):
                if kind.same_as is not None:
                    caches[layer] = caches[kind.same_as]
                    continue
                old = caches[layer]
                caches[layer] = self._zeros(old.shape[0], kind.groups, longer, old.shape[-1])
                caches[layer][:, :, : self.prefix_tokens] = old
        self.prefix_tokens = longer
        return True

    def store(self, slot: int, prefix: Prefix) -> bool:
        """Keep what a prompt left behind; True if the buffers had to move."""
        moved, length = self.reserve(prefix.length), prefix.length
        self.crosses[slot] = {layer: noted for layer, noted in prefix.layers.items() if noted.cross}
        self.prompt_states[slot] = prefix.end.cache_layers if self.states else ()
        for layer, noted in prefix.layers.items():
            if not noted.cross and self.kinds[layer].same_as is None:
                self.prefix_keys[layer][slot, :, :length] = noted.keys
                self.prefix_values[layer][slot, :, :length] = noted.values
        # Not `[slot] = length`: a number that is written to one place, or to some, makes the host wait for a GPU.
        self.prefix_lengths_Q[slot].fill_(length)
        self.next_positions_Q[slot].fill_(prefix.end.next_position)
        return moved

    def start(self, rows: Tensor, slots: Sequence[int]) -> None:
        """Give rows that begin the recurrent states of their prompts."""
        if self.states:
            places = torch.tensor(slots, device=rows.device)
            for slot in set(slots):
                self.states.fill(rows[places == slot], self.prompt_states[slot])

    def answer_cache(self, num_rows: int, like: Sequence[object]) -> Cache:
        """What the decoder is handed for a step of the first rows; `like`: the model's cache_layers."""
        # Which of them a layer is handed does not matter: the layout has those of each row.
        crosses = next((noted for noted in self.crosses if noted), {})
        crosses = {layer: (noted.keys[None], noted.values[None]) for layer, noted in crosses.items()}
        return answer_cache(like, self.states.first(num_rows) if self.states else (), crosses)

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source` becomes row `target`, its first `length` suffix tokens with it."""
        if self.paged:
            self.pages_RC[target] = self.pages_RC[source]
        else:
            for cache in self.suffixes():
                cache[target, :, :length] = cache[source, :, :length]
        if self.states:
            self.states.move(source, target)
        self.state_5R[:, target] = self.state_5R[:, source]

    def suffixes(self) -> list[Tensor]:
        """Every suffix buffer once."""
        buffers = {id(cache): cache for cache in (*self.suffix_keys, *self.suffix_values) if len(cache)}
        return list(buffers.values())
