"""Keys and values of image states where the kernels are, for layers that look at these alone, as Mllama's do.

An answer adds none, so a prompt's are written once, to pages of a pool of their own: they are many, and few layers have
any. The pool has as many pages as prompts took at a time so far.

Shapes: Q slots, R rows, N pages, B pages of a prompt at most, G key/value heads, S tokens of a page, D head width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from data_engine.models.base import VisionLanguageModel
from data_engine.models.device import sent
from data_engine.models.layers.attention import DoesNotFit
from data_engine.models.layers.noting import Noted
from data_engine.sampling.native.page_allocator import PAGE, pages_of
from data_engine_kernels import LayerCaches, RowIndex


class ImageStates:
    """By layer, keys and values [N, G, S, D]; page 0 is a dummy without numbers."""

    def __init__(self, model: VisionLanguageModel, num_slots: int) -> None:
        self.layers = {
            layer: LayerCaches(
                *(
                    torch.zeros(1, kind.groups, PAGE, width, device=model.device, dtype=model.dtype)
                    for width in (kind.key_width, kind.value_width)
                )
            )
            for layer, kind in enumerate(model.layers)
            if kind.cross
        }
        self._device, self._free = model.device, []
        self._of_slot: list[list[int]] = [[] for _ in range(num_slots)]
        self.lengths_Q = torch.zeros(num_slots, dtype=torch.long, device=model.device)
        self.pages_QB = torch.zeros(num_slots, 1, dtype=torch.long, device=model.device)

    def some(self) -> dict[int, tuple[Tensor, Tensor]]:
        """By layer, keys and values [1, G, S, D] of whichever prompt: a decoder asks whether there are any."""
        return {layer: (caches.keys[:1], caches.values[:1]) for layer, caches in self.layers.items()}

    def store(self, slot: int, noted: Mapping[int, Noted]) -> bool:
        """Keep those of a prompt; True if a step reads other addresses now."""
        if noted.keys() != self.layers.keys() or len({one.keys.shape[1] for one in noted.values()}) > 1:
            raise DoesNotFit("its layers for image states have different ones")
        self.forget(slot)
        [number] = {one.keys.shape[1] for one in noted.values()}
        moved = self._make_room(pages_of(number))
        its_pages = self._of_slot[slot] = [self._free.pop() for _ in range(pages_of(number))]
        which = sent(torch.tensor(its_pages), self._device)
        self.pages_QB[slot, : len(its_pages)] = which
        # The same are hidden from all layers (LayerKind.weighs). Those that are seen come first, by which the host need
        # not know how many there are.
        bias = next(iter(noted.values())).bias
        hidden = torch.zeros(number, device=self._device) if bias is None else bias[0]
        order = (hidden != 0).int().argsort(stable=True)
        self.lengths_Q[slot] = (hidden == 0).sum()
        for layer, one in noted.items():
            for pool, part in ((self.layers[layer].keys, one.keys), (self.layers[layer].values, one.values)):
                whole = part.new_zeros(part.shape[0], len(its_pages) * PAGE, part.shape[-1])
                whole[:, :number] = part.index_select(1, order)
                pool.index_copy_(0, which, whole.unflatten(1, (len(its_pages), PAGE)).transpose(0, 1))
        return moved

    def forget(self, slot: int) -> None:
        """Free the pages of a prompt that no row reads."""
        self._free.extend(self._of_slot[slot])
        self._of_slot[slot] = []

    def index(self, slots_R: Tensor, members_QM: Tensor) -> RowIndex:
        """What each row reads: the states of its prompt, and nothing of its own."""
        no_tokens_R, no_pages_R1 = torch.zeros_like(slots_R), torch.zeros_like(slots_R)[:, None]
        return RowIndex(slots_R, no_tokens_R, self.lengths_Q, members_QM, no_pages_R1, self.pages_QB)

    def _make_room(self, its_pages: int) -> bool:
        """Have so many free pages, and so many places in a line of the table; True if anything moved."""
        narrow = self.pages_QB
        if moved := its_pages > narrow.shape[1]:
            self.pages_QB = narrow.new_zeros(len(narrow), its_pages)
            self.pages_QB[:, : narrow.shape[1]] = narrow
        if its_pages <= len(self._free):
            return moved
        # Doubled, so that it rarely moves; for no more prompts than there are slots.
        before = len(next(iter(self.layers.values())).keys)
        most = 1 + len(self._of_slot) * self.pages_QB.shape[1]
        number = max(min(2 * before, most), before - len(self._free) + its_pages)
        for layer, caches in self.layers.items():
            self.layers[layer] = LayerCaches(*(_longer(pool, number) for pool in (caches.keys, caches.values)))
        self._free.extend(range(before, number))
        return True


def _longer(pool: Tensor, number: int) -> Tensor:
    made = pool.new_zeros(number, *pool.shape[1:])
    made[: len(pool)] = pool
    return made
