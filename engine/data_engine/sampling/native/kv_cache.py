"""Where the sampling loop keeps keys, values and the state of its rows: buffers made once, at addresses that stay.

A prefix lies in a slot, and is read by all rows of its question; a row's own tokens, its suffix, lie in pages. Where
plain torch reads suffixes as slices, a page is as long as an answer may get, and each row has the one of its number.

Shapes: Q slots, R rows, N pages, C pages of a row at most, G key/value heads, P prefix tokens at most, S tokens of a
page, D head width, V vocabulary.
"""

import torch
from torch import Tensor

from data_engine.models.base import VisionLanguageModel
from data_engine.models.decoder import head_width
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
    """By layer, prefix keys and values [Q, G, P, D] and suffix keys and values [N, G, S, D]; the rows' state."""

    def __init__(
        self, model: VisionLanguageModel, num_rows: int, num_slots: int, suffix_tokens: int, paged: bool = False
    ) -> None:
        config, device = model.decoder.config, model.device
        self.dtype = model.dtype
        like = 0, config.num_key_value_heads, 0, head_width(config)
        self._like = torch.empty(like, device=device, dtype=model.dtype)
        self.num_rows, self.num_slots, self.suffix_tokens = num_rows, num_slots, suffix_tokens
        self.paged, self.page_tokens = paged, pages.PAGE if paged else suffix_tokens
        # Page 0 is a dummy, for padding rows.
        self.num_pages = 1 + pages.num_pages(num_rows, suffix_tokens) if paged else num_rows
        layers, pool = range(config.num_hidden_layers), (self.num_pages, self.page_tokens)
        self.suffix_keys, self.suffix_values = ([self._zeros(*pool) for _ in layers] for _ in "kv")
        self.prefix_keys, self.prefix_values = ([self._zeros(num_slots, 0) for _ in layers] for _ in "kv")
        self.prefix_tokens = 0
        self.prefix_lengths_Q = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.first_logits_QV = torch.zeros(num_slots, len(model.head_weight), device=device)
        # Of each row: its pages in order.
        self.pages_RC = torch.arange(num_rows, device=device)[:, None]
        if paged:
            self.pages_RC = torch.zeros(num_rows, pages.pages_of(suffix_tokens), dtype=torch.long, device=device)
        # Of each row: its newest token, its random-number key, how many tokens it has, its slot, where it is to end.
        self.state_5R = torch.zeros(5, num_rows, dtype=torch.long, device=device)
        self.tokens_R, self.keys_R, self.lengths_R, self.slots_R, self.ends_R = self.state_5R
        self.lengths_R.fill_(1)

    def _zeros(self, number: int, length: int) -> Tensor:
        _, heads, _, width = self._like.shape
        # Zeros: what lies beyond a length is multiplied by 0 in places, and 0 x NaN is NaN.
        return self._like.new_zeros(number, heads, length, width)

    def reserve(self, prefix_tokens: int) -> bool:
        """Make room for prefixes of this length; True if the buffers had to move."""
        if prefix_tokens <= self.prefix_tokens:
            return False
        longer = -(-prefix_tokens // ROUND) * ROUND
        # Layer by layer, so that old and new are never there as a whole at the same time.
        for caches in (self.prefix_keys, self.prefix_values):
            for layer, old in enumerate(caches):
                caches[layer] = self._zeros(self.num_slots, longer)
                caches[layer][:, :, : self.prefix_tokens] = old
        self.prefix_tokens = longer
        return True

    def slot(self, number: int, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """Where the keys and values of a prefix go, by layer [G, length, D]."""
        both = (self.prefix_keys, self.prefix_values)
        return tuple([cache[number, :, :length] for cache in caches] for caches in both)

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source` becomes row `target`, its first `length` suffix tokens with it."""
        if self.paged:
            self.pages_RC[target] = self.pages_RC[source]
        else:
            for cache in (*self.suffix_keys, *self.suffix_values):
                cache[target, :, :length] = cache[source, :, :length]
        self.state_5R[:, target] = self.state_5R[:, source]
