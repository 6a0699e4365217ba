"""Keys and values of prefixes and suffixes in one pool of pages, where the kernels are.

Which page is whose, the host decides (page_allocator.py); a step reads it from two tables at addresses that stay. A
long prompt costs its own pages and no other's: where the table of prefixes is too narrow for it, that alone is made
anew.

Shapes: Q slots, R rows, N pages, B pages of a prefix at most, C pages of a row at most, G key/value heads, S tokens of
a page, D head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data_engine.models.base import VisionLanguageModel
from data_engine.models.device import sent
from data_engine.models.layers.prefix import Prefix
from data_engine.sampling.native import page_allocator as pages
from data_engine.sampling.native.image_states import ImageStates
from data_engine.sampling.native.kv_cache import buffers, crosses, each_once, own_layers

# Prompts of so many tokens have room in the table from the start. A step's scratch grows with it: docs/gpu.md.
FIRST_ROOM = 4096


class PagePool:
    """By layer, keys and values [N, G, S, D]; page 0 is a dummy, which padding rows write to."""

    def __init__(
        self, model: VisionLanguageModel, num_rows: int, num_slots: int, suffix_tokens: int, num_pages: int
    ) -> None:
        """`num_pages`: without the dummy."""
        self._kinds = tuple(model.layers)
        self.most = model.max_positions
        """tokens that a sequence, prefix and suffix, may ever have"""
        self.suffix_tokens, self.page_tokens, self.num_pages = suffix_tokens, pages.PAGE, 1 + num_pages
        self.keys, self.values = buffers(model, self.num_pages, self.page_tokens)
        has_crosses = any(kind.cross for kind in model.layers)
        self.of_images = ImageStates(model, num_slots) if has_crosses else None
        # Of each row and of each slot: its pages in order.
        self.pages_RC = torch.zeros(num_rows, pages.pages_of(suffix_tokens), dtype=torch.long, device=model.device)
        room = pages.pages_of(min(self.most, FIRST_ROOM))
        self.prefix_pages_QB = torch.zeros(num_slots, room, dtype=torch.long, device=model.device)

    @property
    def token_bytes(self) -> int:
        """Of the keys and values of a token, all layers."""
        return sum(pool[0, :, 0].nbytes for pool in self.suffixes())

    def store(self, slot: int, prefix: Prefix, its_pages: Sequence[int]) -> bool:
        moved = self._make_room(len(its_pages))
        which, whole = sent(torch.tensor(its_pages), self.pages_RC.device), prefix.length // self.page_tokens
        self.prefix_pages_QB[slot, : len(its_pages)] = which
        rest = prefix.length - whole * self.page_tokens
        for layer, noted in own_layers(self._kinds, prefix):
            for pool, numbers in ((self.keys[layer], noted.keys), (self.values[layer], noted.values)):
                in_pages = numbers[:, : whole * self.page_tokens].unflatten(1, (whole, self.page_tokens))
                pool.index_copy_(0, which[:whole], in_pages.transpose(0, 1))
                if rest:
                    pool[its_pages[-1], :, :rest] = numbers[:, -rest:]
        if self.of_images:
            moved |= self.of_images.store(slot, crosses(prefix))
        return moved

    def forget(self, slot: int) -> None:
        if self.of_images:
            self.of_images.forget(slot)

    def image_states(self) -> dict[int, tuple[Tensor, Tensor]]:
        return self.of_images.some() if self.of_images else {}

    def _make_room(self, its_pages: int) -> bool:
        """Widen the table of prefixes; True if it moved. The pool stays."""
        narrow, room = self.prefix_pages_QB, self.prefix_pages_QB.shape[1]
        if its_pages <= room:
            return False
        # Doubled, so that it rarely moves: each time, the captured step goes.
        self.prefix_pages_QB = narrow.new_zeros(len(narrow), max(its_pages, min(2 * room, pages.pages_of(self.most))))
        self.prefix_pages_QB[:, :room] = narrow
        return True

    def move(self, source: int, target: int, length: int) -> None:
        self.pages_RC[target] = self.pages_RC[source]

    def suffixes(self) -> list[Tensor]:
        return each_once(self.keys, self.values)
