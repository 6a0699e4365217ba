"""What grouped decode attention reads: one layer's caches, and which row reads what in one step.

Shapes: R rows, Q slots of prefixes, M rows of a question at most, N pages of suffixes, C pages of a row at most, G
key/value heads, P room for prefix tokens, S tokens of a page, D head width. All tensors keep their addresses while
their contents change, as CUDA graphs need it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerCaches:
    """Keys and values of one layer, pools allocated once.

    Strides: any, but the last must be 1, and keys and values of a pool share theirs. Numbers beyond a length are never
    used, yet must be finite (allocate with zeros): the eager path multiplies them by 0.
    """

    prefix_keys: Tensor
    """[Q, G, P, D]: one prefix a slot, stored once, read by all rows of its question."""
    prefix_values: Tensor
    """[Q, G, P, D]"""
    suffix_keys: Tensor
    """[N, G, S, D]: pages of the rows' own answers so far, their newest tokens included."""
    suffix_values: Tensor
    """[N, G, S, D]"""


@dataclass(frozen=True)
class RowIndex:
    """Who reads what in one step, the same in all layers; integers, on the device of the caches."""

    slots: Tensor
    """[R]: the row's slot, or -1: an idle row without a prefix."""
    suffix_lengths: Tensor
    """[R]: tokens in the row's own suffix. A row that sees no token at all gets zeros."""
    prefix_lengths: Tensor
    """[Q]: tokens in the slot's prefix."""
    members: Tensor
    """[Q, M]: the rows of each slot, -1 after the last; see members_of."""
    pages: Tensor
    """[R, C]: where the row's suffix lies, in order; behind its length any page."""


def members_of(slots_R: Tensor, num_slots: int, most: int) -> Tensor:
    """[Q, M] int32: the rows of each slot in ascending order, -1 where there are no more.

    Once a step, not once a layer; waits for nothing, so that it can stand in a CUDA graph. `most` is the number of
    answers a question (k): fixed for a run, since tile sizes follow from it. Asserts that no slot has more rows.
    """
    order = slots_R.argsort(stable=True)
    ordered = slots_R[order].contiguous()
    place = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    idle = ordered < 0
    torch._assert_async((idle | (place < most)).all(), f"a slot has more than {most} rows")
    # Idle rows all go to one cell behind the end, which is cut off.
    cell = torch.where(idle, num_slots * most, ordered * most + place)
    members = torch.full((num_slots * most + 1,), -1, dtype=torch.int32, device=order.device)
    return members.scatter_(0, cell, order.int())[:-1].view(num_slots, most)
