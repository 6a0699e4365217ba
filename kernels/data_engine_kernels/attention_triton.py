"""grouped_decode_attention as a Triton kernel: a tile of a prefix is read once for all rows of its question.

One launch computes all parts: prefix parts (a slot, a key/value head, `split` tokens, against all queries that share
them, as one tensor-core product) and suffix parts (a row, a key/value head, `own` tokens), each over whole pages of the
one pool. Its programs, a fixed number, walk the list of those that have work (work_list.py). A part is computed alone
and stores unnormalised values, the sum of their weights and the maximum that was subtracted. A second, small launch
merges a row's parts in ascending order, prefix first: merging in the first launch would need an atomic counter and a
fence, and save a few microseconds. Parts have a fixed number of tokens, and tile sizes depend only on the model and k,
so the result of a row does not depend on the other rows, nor on which program computed it.

Shapes: R rows, H and G query and key/value heads, Q slots, B pages of a prefix at most, S tokens of a page, D head
width, C parts.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from data_engine_kernels.attention_parts import merge_kernel, parts_kernel
from data_engine_kernels.layouts import USUAL, LayerCaches, RowIndex, Special
from data_engine_kernels.work_list import DEFAULT, Division, Launch, num_programs


class Tile(NamedTuple):
    """What a program multiplies at a time."""

    tokens: int
    """of a prefix or suffix, in one page"""
    queries: int
    """at most: more of them take several programs, which find the tile in the L2 cache"""
    stages: int
    """tiles that are on their way at a time"""


def tile_of(lanes: int, dtype: torch.dtype) -> Tile:
    """By the head width as a power of 2: any program fits into 99 KB of shared memory, as desktop cards have it.

    With twice as many queries, a program needs all registers of a multiprocessor, and none can run beside it.
    """
    if dtype == torch.float32:
        return Tile(32 if lanes <= 128 else 16, 16, 2 if lanes <= 256 else 1)
    if lanes <= 128:
        return Tile(64, 64, 2)
    return Tile(32, 64, 2) if lanes <= 256 else Tile(16, 32, 2)


def grouped_decode_attention(
    query_RHD: Tensor,
    caches: LayerCaches,
    rows: RowIndex,
    scale: float,
    special: Special = USUAL,
    launch: Launch = DEFAULT,
) -> Tensor:
    """reference.grouped_decode_attention without synchronising, so it can be captured in a CUDA graph.

    The caches are not read beyond a length. Scratch: C x R x H x (D + 2) x 4 bytes, where C = ceil(B S / split) +
    ceil(pages of a row x S / own). Raises ValueError where strides, dtypes or pages do not fit.
    """
    num_rows, heads, width = query_RHD.shape
    _, groups, page, _ = caches.keys.shape
    lanes = max(triton.next_power_of_2(width), 16)
    tile = tile_of(lanes, query_RHD.dtype)
    tokens = min(page, tile.tokens)
    _check(query_RHD, caches, launch, tokens)
    slots, most = rows.members.shape
    shared = heads // groups
    prefix_parts = triton.cdiv(rows.prefix_pages.shape[1] * page, launch.split)
    own_parts = triton.cdiv(rows.pages.shape[1] * page, launch.own)
    queries = min(max(triton.next_power_of_2(most * shared), 16), tile.queries)
    query_tiles = triton.cdiv(most * shared, queries)
    prefix_tasks = slots * query_tiles * prefix_parts
    most_tasks = (prefix_tasks + num_rows * own_parts) * groups

    def scratch(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=query_RHD.device)

    mixed = scratch(prefix_parts + own_parts, num_rows, heads, width)
    # Each at an address of its own: that of a part of one would be aligned for some numbers of rows alone.
    totals, tops = (scratch(prefix_parts + own_parts, num_rows, heads) for _ in range(2))
    out = torch.empty(num_rows, heads, width, dtype=query_RHD.dtype, device=query_RHD.device)
    if not num_rows:
        return out
    work = rows.work(Division(launch.split, launch.own, prefix_parts, own_parts, shared, queries, query_tiles))
    programs = num_programs(_multiprocessors(query_RHD.device), num_rows * groups, most_tasks, launch)
    parts_kernel[(programs,)](
        query_RHD,
        caches.keys,
        caches.values,
        rows.prefix_lengths.contiguous(),
        rows.suffix_lengths.contiguous(),
        rows.members.contiguous(),
        rows.pages.contiguous(),
        rows.prefix_pages.contiguous(),
        work.tasks,
        work.count,
        mixed,
        totals,
        tops,
        scale,
        num_rows,
        prefix_tasks,
        prefix_parts,
        own_parts,
        rows.prefix_pages.shape[1],
        rows.pages.shape[1],
        query_RHD.stride(0),
        query_RHD.stride(1),
        *caches.keys.stride()[:3],
        MOST=most,
        GROUPS=groups,
        SHARED=shared,
        WIDTH=width,
        LANES=lanes,
        SPLIT=launch.split,
        OWN=launch.own,
        PAGE=page,
        TOKENS=tokens,
        QUERY_TILES=query_tiles,
        PREFIX_QUERIES=queries,
        SUFFIX_QUERIES=max(triton.next_power_of_2(shared), 16),
        WINDOW=special.window or 0,
        SOFTCAP=special.softcap,
        INTERPRETED=not query_RHD.is_cuda,
        num_warps=4,
        num_stages=tile.stages,
    )
    merge_kernel[(num_rows, triton.cdiv(heads, 8))](
        mixed,
        totals,
        tops,
        rows.slots.contiguous(),
        rows.prefix_lengths.contiguous(),
        rows.suffix_lengths.contiguous(),
        out,
        num_rows,
        prefix_parts,
        HEADS=heads,
        WIDTH=width,
        LANES=lanes,
        SPLIT=launch.split,
        OWN=launch.own,
        BLOCK=8,
        WINDOW=special.window or 0,
        INTERPRETED=not query_RHD.is_cuda,
        num_warps=4,
    )
    return out


def _multiprocessors(device: torch.device) -> int:
    """Of the card; one in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _check(query_RHD: Tensor, caches: LayerCaches, launch: Launch, tokens: int) -> None:
    keys, values, page = caches.keys, caches.values, caches.keys.shape[2]
    if keys.stride() != values.stride() or keys.stride(3) != 1:
        raise ValueError(
            f"keys and values must share their strides, the last one 1, got {keys.stride()} and {values.stride()}"
        )
    dtypes = {query_RHD.dtype, keys.dtype, values.dtype}
    if len(dtypes) > 1 or query_RHD.stride(2) != 1:
        raise ValueError(f"query and caches must have one dtype and a last stride of 1, got {dtypes}")
    if tokens < 16 or page % tokens or launch.split % page or launch.own % page:
        raise ValueError(f"pages must be tiles of 16 tokens or more, and parts pages, got {page} tokens and {launch}")
