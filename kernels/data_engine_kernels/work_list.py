"""The parts of decode attention that have work in a step: a list that is made on the device, once a step.

A part is numbered as if all of them had work: those of prefixes by slot, tile of queries and place, then those of
suffixes by row and place. The kernel is launched with a fixed number of programs, which walk the list with a stride; so
a captured launch has no programs for what is not there.

Shapes: Q slots, R rows, M rows of a question at most, T parts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """What a launch may choose."""

    split: int = 640
    """tokens of a part of a prefix: smaller parts occupy the card with fewer rows, larger ones write fewer results"""
    own: int = 512
    """tokens of a part of a suffix; both are whole pages"""
    programs: int | None = None
    """programs a multiprocessor, which has about three at a time; None: see num_programs. No bit depends on it"""


DEFAULT = Launch()
# Programs a multiprocessor, where rows are few: the parts of long prefixes are more than those of suffixes.
LEAST_PROGRAMS = 8


def num_programs(multiprocessors: int, rows: int, most: int, launch: Launch = DEFAULT) -> int:
    """Programs of a launch: the same in every step, and never more than the most tasks there can be.

    `rows` counts a row once for each key/value head. A program for each of them has work as long as its row has an
    answer, and computes few parts, so that the card can balance them: fewer programs that each walk through many parts
    were slower on an H100, and so were programs without one.
    """
    if launch.programs is None:
        return min(max(rows, LEAST_PROGRAMS * multiprocessors), most)
    return min(launch.programs * multiprocessors, most)


@dataclass(frozen=True)
class Division:
    """How the attention of a layer is divided: by the caches and the model, never by what rows read in a step."""

    split: int
    """tokens of a part of a prefix"""
    own: int
    """tokens of a part of a suffix"""
    prefix_parts: int
    """parts of the longest prefix that there is room for"""
    own_parts: int
    """parts of the longest suffix"""
    shared: int
    """query heads that share a key/value head"""
    queries: int
    """queries of a tile; those of a slot are its rows' in order, `shared` each"""
    tiles: int
    """tiles of a slot"""


@dataclass(frozen=True)
class WorkList:
    """The parts with tokens and queries."""

    tasks: Tensor
    """[T] int32: their numbers in ascending order; behind `count` any"""
    count: Tensor
    """[1] int32"""


def work_list(prefix_lengths_Q: Tensor, suffix_lengths_R: Tensor, members_QM: Tensor, by: Division) -> WorkList:
    """It does not synchronise, so it can be captured in a CUDA graph."""
    device = suffix_lengths_R.device
    # Members of a slot come first in its line, so a tile has a query where its first one is there.
    queries_Q = (members_QM >= 0).sum(1) * by.shared
    tiles = torch.arange(by.tiles, device=device) * by.queries < queries_Q[:, None]
    prefixes = torch.arange(by.prefix_parts, device=device) * by.split < prefix_lengths_Q[:, None]
    suffixes = torch.arange(by.own_parts, device=device) * by.own < suffix_lengths_R[:, None]
    work_T = torch.cat([(tiles[:, :, None] & prefixes[:, None]).flatten(), suffixes.flatten()])
    size = len(work_T)
    # All parts without work are written to one extra cell, which is cut off.
    places = torch.where(work_T, work_T.cumsum(0) - 1, size)
    tasks = torch.zeros(size + 1, dtype=torch.int32, device=device)
    tasks.scatter_(0, places, torch.arange(size, dtype=torch.int32, device=device))
    # Not the last of the cumulative sums: its address would be aligned for some sizes alone.
    return WorkList(tasks[:-1], work_T.sum(0, keepdim=True, dtype=torch.int32))
