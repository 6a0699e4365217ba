"""The inputs of grouped decode attention: the caches of one layer, and the index of a step's rows into them.

Shapes: R rows, Q prefix slots, M rows of a question at most, N pages, B pages of a prefix at most, C pages of a row at
most, G key/value heads, S tokens of a page, D head width. CUDA graphs require that the tensors keep their addresses
while their contents change.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_engine_kernels.work_list import Division, WorkList, work_list

# Of a head: the kernels' tiles of one fit into the shared memory of any card.
MOST_WIDTH = 512


@dataclass(frozen=True)
class LayerCaches:
    """Keys and values of one layer: one pool of pages for prefixes and suffixes, allocated once.

    Strides: the last must be 1, and keys and values have the same. Numbers beyond a length do not count, but must be
    finite (allocate with zeros): the eager path multiplies them by 0.
    """

    keys: Tensor
    """[N, G, S, D]"""
    values: Tensor
    """[N, G, S, D]"""


@dataclass(frozen=True)
class Special:
    """What a layer does beside softmax(scale q k^T) over all tokens up to the new one."""

    window: int | None = None
    """tokens that the new one sees, itself included, as transformers' sliding windows count; None: all of them"""
    softcap: float | None = None
    """scores are c tanh(score / c), as Gemma 2 has it"""

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"a window has the new token at least, got {self.window} tokens")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap must be above 0, got {self.softcap}")


USUAL = Special()


@dataclass(frozen=True)
class RowIndex:
    """What each row of a step reads, the same in all layers; integers, on the device of the caches.

    Made once a step: what follows from it is kept with it.
    """

    slots: Tensor
    """[R]: the row's slot, or -1: an idle row without a prefix."""
    suffix_lengths: Tensor
    """[R]: tokens in the row's own suffix. A row without any token gets zeros."""
    prefix_lengths: Tensor
    """[Q]: tokens in the slot's prefix."""
    members: Tensor
    """[Q, M]: the rows of each slot, padded with -1; see members_of."""
    pages: Tensor
    """[R, C]: the pages of the row's own answer so far, in order; entries beyond its length may be any page."""
    prefix_pages: Tensor
    """[Q, B]: the pages of the slot's prefix, in order, read by all rows of its question; see `pages`."""
    _work: dict[Division, WorkList] = field(init=False, repr=False, compare=False, default_factory=dict)

    def work(self, by: Division) -> WorkList:
        """The parts that have work; made for the first layer that is divided so, the same for all others."""
        if by not in self._work:
            self._work[by] = work_list(self.prefix_lengths, self.suffix_lengths, self.members, by)
        return self._work[by]


def members_of(slots_R: Tensor, num_slots: int, most: int) -> Tensor:
    """[Q, M] int32: the rows of each slot in ascending order, padded with -1.

    Called once a step, not once a layer; it does not synchronise, so it can be captured in a CUDA graph. `most` is M,
    the number of answers a question (k): fixed for a run, since tile sizes depend on it. Asserts that no slot has more.
    """
    order = slots_R.argsort(stable=True)
    ordered = slots_R[order].contiguous()
    place = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    idle = ordered < 0
    torch._assert_async((idle | (place < most)).all(), f"a slot has more than {most} rows")
    # All idle rows are written to one extra cell, which is cut off.
    cell = torch.where(idle, num_slots * most, ordered * most + place)
    members = torch.full((num_slots * most + 1,), -1, dtype=torch.int32, device=order.device)
    return members.scatter_(0, cell, order.int())[:-1].view(num_slots, most)
