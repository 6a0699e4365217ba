"""grouped_decode_attention as a Triton kernel: the rows of a question read a tile of their prefix once, together.

One launch computes all parts: prefix parts (a slot, a key/value head, SPLIT tokens, against all queries that share
them, as one tensor-core product) and suffix parts (a row, a key/value head, SPLIT tokens). Each leaves an unnormalised
mixture, the sum of its weights and the maximum both are relative to. A second, small launch merges a row's parts in
ascending order, prefix first: merging in the first one would need an atomic counter and a fence, for a few
microseconds. Parts have a fixed number of tokens and tile sizes follow from the model and k alone, so a row's result
does not depend on the rows beside it.

Shapes: R rows, H and G query and key/value heads, Q slots, M rows of a question at most, D head width, C parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from data_engine.kernels.layouts import LayerCaches, RowIndex

# Tokens of a part. Smaller fills the card with fewer rows, larger writes fewer parts.
SPLIT = 256
# Queries that meet a tile of the prefix at once; more of them take several programs, which find the tile in the L2
# cache. With twice as many, one program fills a multiprocessor's registers, and suffix parts wait for memory alone.
MOST_QUERIES, MOST_QUERIES_FP32 = 64, 16


def grouped_decode_attention(
    query_RHD: Tensor, caches: LayerCaches, rows: RowIndex, scale: float, split: int = SPLIT
) -> Tensor:
    """reference.grouped_decode_attention, never waiting for the device: fit for a CUDA graph.

    Numbers of the caches beyond a length are not read at all. Scratch: C x R x H x (D + 2) x 4 bytes, where
    C = ceil(P / split) + ceil(S / split). Raises ValueError where strides break the contract of LayerCaches.
    """
    _check(query_RHD, caches)
    num_rows, heads, width = query_RHD.shape
    slots, groups, prefix_room, _ = caches.prefix_keys.shape
    most, shared = rows.members.shape[1], heads // groups
    prefix_parts, suffix_parts = triton.cdiv(prefix_room, split), triton.cdiv(caches.suffix_keys.shape[2], split)
    wide = query_RHD.dtype == torch.float32
    queries = min(max(triton.next_power_of_2(most * shared), 16), MOST_QUERIES_FP32 if wide else MOST_QUERIES)
    query_tiles = triton.cdiv(most * shared, queries)
    prefix_tasks = slots * query_tiles * prefix_parts
    lanes = max(triton.next_power_of_2(width), 16)

    def scratch(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=query_RHD.device)

    mixed = scratch(prefix_parts + suffix_parts, num_rows, heads, width)
    totals, tops = scratch(2, prefix_parts + suffix_parts, num_rows, heads)
    out = torch.empty(num_rows, heads, width, dtype=query_RHD.dtype, device=query_RHD.device)
    if not num_rows:
        return out
    _parts_kernel[(prefix_tasks + num_rows * suffix_parts, groups)](
        query_RHD,
        caches.prefix_keys,
        caches.prefix_values,
        caches.suffix_keys,
        caches.suffix_values,
        rows.prefix_lengths.contiguous(),
        rows.suffix_lengths.contiguous(),
        rows.members.contiguous(),
        mixed,
        totals,
        tops,
        scale,
        num_rows,
        query_RHD.stride(0),
        query_RHD.stride(1),
        *caches.prefix_keys.stride()[:3],
        *caches.suffix_keys.stride()[:3],
        MOST=most,
        SHARED=shared,
        WIDTH=width,
        LANES=lanes,
        SPLIT=split,
        TOKENS=min(split, 32 if wide else 64),
        PREFIX_TASKS=prefix_tasks,
        PREFIX_PARTS=prefix_parts,
        SUFFIX_PARTS=suffix_parts,
        QUERY_TILES=query_tiles,
        PREFIX_QUERIES=queries,
        SUFFIX_QUERIES=max(triton.next_power_of_2(shared), 16),
        INTERPRETED=not query_RHD.is_cuda,
        num_warps=4,
        num_stages=2,
    )
    _merge_kernel[(num_rows, triton.cdiv(heads, 8))](
        mixed,
        totals,
        tops,
        rows.slots.contiguous(),
        rows.prefix_lengths.contiguous(),
        rows.suffix_lengths.contiguous(),
        out,
        num_rows,
        HEADS=heads,
        WIDTH=width,
        LANES=lanes,
        SPLIT=split,
        PREFIX_PARTS=prefix_parts,
        BLOCK=8,
        INTERPRETED=not query_RHD.is_cuda,
        num_warps=4,
    )
    return out


def _check(query_RHD: Tensor, caches: LayerCaches) -> None:
    pairs = ((caches.prefix_keys, caches.prefix_values), (caches.suffix_keys, caches.suffix_values))
    for keys, values in pairs:
        if keys.stride() != values.stride() or keys.stride(3) != 1:
            raise ValueError(
                f"keys and values must share their strides, the last one 1, got {keys.stride()} and {values.stride()}"
            )
    dtypes = {query_RHD.dtype, *(tensor.dtype for pair in pairs for tensor in pair)}
    if len(dtypes) > 1 or query_RHD.stride(2) != 1:
        raise ValueError(f"query and caches must have one dtype and a last stride of 1, got {dtypes}")


@triton.jit
def _cast(numbers, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 as dtype, rounded to nearest even as on a GPU; Triton's interpreter by itself cuts bf16 off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = numbers.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        numbers = bits.to(tl.float32, bitcast=True)
    return numbers.to(dtype)


@triton.jit
def _part(
    query,
    keys,
    values,
    mixed,
    totals,
    tops,
    row,
    head,
    start,
    length,
    part_row,
    scale,
    query_row_stride,
    query_head_stride,
    token_stride,
    heads,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    TOKENS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Queries (row, head) over the tokens from start to the end of the part or of the length; row -1 is no query."""
    lanes = tl.arange(0, LANES)
    stop = tl.minimum(start + SPLIT, length)
    there = row >= 0
    fits = (lanes < WIDTH)[None, :]
    query_at = row.to(tl.int64) * query_row_stride + head * query_head_stride
    q = tl.load(query + query_at[:, None] + lanes[None, :], mask=there[:, None] & fits, other=0.0)
    if INTERPRETED:
        # Triton's interpreter multiplies the bits of bf16 as integers; in fp32 the products are the same, exact.
        q = q.to(tl.float32)
    top = tl.full([row.shape[0]], -float("inf"), tl.float32)
    total = tl.zeros([row.shape[0]], tl.float32)
    mix = tl.zeros([row.shape[0], LANES], tl.float32)
    for first in range(start, stop, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        seen = tokens < stop
        at = tokens.to(tl.int64)[:, None] * token_stride + lanes[None, :]
        k = tl.load(keys + at, mask=seen[:, None] & fits, other=0.0)
        v = tl.load(values + at, mask=seen[:, None] & fits, other=0.0)
        if INTERPRETED:
            k = k.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, -float("inf"))
        new = tl.maximum(top, tl.max(scores, 1))
        decay = tl.exp(top - new)
        weights = tl.exp(scores - new[:, None])
        total = total * decay + tl.sum(weights, 1)
        weights = _cast(weights, v.dtype, INTERPRETED)
        if INTERPRETED:
            weights, v = weights.to(tl.float32), v.to(tl.float32)
        mix = tl.dot(weights, v, mix * decay[:, None], input_precision="ieee")
        top = new
    # No token was seen: the part lies behind the length, and the merge does not read it.
    there = there & (total != 0)
    at = (part_row + row) * heads + head
    tl.store(totals + at, total, mask=there)
    tl.store(tops + at, top, mask=there)
    tl.store(mixed + at[:, None] * WIDTH + lanes[None, :], mix, mask=there[:, None] & fits)


# Not specialised for the number of rows: the same binary whatever the batch.
@triton.jit(do_not_specialize=["num_rows"])
def _parts_kernel(
    query,
    prefix_keys,
    prefix_values,
    suffix_keys,
    suffix_values,
    prefix_lengths,
    suffix_lengths,
    members,
    mixed,
    totals,
    tops,
    scale,
    num_rows,
    query_row_stride,
    query_head_stride,
    prefix_slot_stride,
    prefix_group_stride,
    prefix_token_stride,
    suffix_row_stride,
    suffix_group_stride,
    suffix_token_stride,
    MOST: tl.constexpr,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    TOKENS: tl.constexpr,
    PREFIX_TASKS: tl.constexpr,
    PREFIX_PARTS: tl.constexpr,
    SUFFIX_PARTS: tl.constexpr,
    QUERY_TILES: tl.constexpr,
    PREFIX_QUERIES: tl.constexpr,
    SUFFIX_QUERIES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One part of one key/value head: the prefix parts of all slots come first, then the suffix parts of all rows."""
    task = tl.program_id(0)
    group = tl.program_id(1)
    heads = tl.num_programs(1) * SHARED
    if task < PREFIX_TASKS:
        part = task % PREFIX_PARTS
        slot = task // (PREFIX_PARTS * QUERY_TILES)
        query_tile = task // PREFIX_PARTS % QUERY_TILES
        many = query_tile * PREFIX_QUERIES + tl.arange(0, PREFIX_QUERIES)
        rows = tl.load(members + slot * MOST + many // SHARED, mask=many < MOST * SHARED, other=-1).to(tl.int32)
        # A slot, or a tile of queries, without rows has nothing to read.
        length = tl.where(tl.max(rows, 0) >= 0, tl.load(prefix_lengths + slot).to(tl.int32), 0)
        base = slot.to(tl.int64) * prefix_slot_stride + group.to(tl.int64) * prefix_group_stride
        _part(
            query,
            prefix_keys + base,
            prefix_values + base,
            mixed,
            totals,
            tops,
            rows,
            group * SHARED + many % SHARED,
            part * SPLIT,
            length,
            part.to(tl.int64) * num_rows,
            scale,
            query_row_stride,
            query_head_stride,
            prefix_token_stride,
            heads,
            WIDTH,
            LANES,
            SPLIT,
            TOKENS,
            INTERPRETED,
        )
    else:
        part = (task - PREFIX_TASKS) % SUFFIX_PARTS
        own = (task - PREFIX_TASKS) // SUFFIX_PARTS
        few = tl.arange(0, SUFFIX_QUERIES)
        base = own.to(tl.int64) * suffix_row_stride + group.to(tl.int64) * suffix_group_stride
        _part(
            query,
            suffix_keys + base,
            suffix_values + base,
            mixed,
            totals,
            tops,
            tl.where(few < SHARED, own, -1),
            group * SHARED + few % SHARED,
            part * SPLIT,
            tl.load(suffix_lengths + own).to(tl.int32),
            (PREFIX_PARTS + part).to(tl.int64) * num_rows,
            scale,
            query_row_stride,
            query_head_stride,
            suffix_token_stride,
            heads,
            WIDTH,
            LANES,
            SPLIT,
            TOKENS,
            INTERPRETED,
        )


@triton.jit(do_not_specialize=["num_rows"])
def _merge_kernel(
    mixed,
    totals,
    tops,
    slots,
    prefix_lengths,
    suffix_lengths,
    out,
    num_rows,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    PREFIX_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The softmax over a row's parts, for BLOCK heads."""
    row = tl.program_id(0)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lanes = tl.arange(0, LANES)
    inside = head < HEADS
    fits = inside[:, None] & (lanes < WIDTH)[None, :]
    slot = tl.load(slots + row)
    prefix_parts = tl.cdiv(tl.load(prefix_lengths + slot, mask=slot >= 0, other=0).to(tl.int32), SPLIT)
    parts = prefix_parts + tl.cdiv(tl.load(suffix_lengths + row).to(tl.int32), SPLIT)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mix = tl.zeros([BLOCK, LANES], tl.float32)
    for number in range(parts):
        part = tl.where(number < prefix_parts, number, number - prefix_parts + PREFIX_PARTS)
        at = (part.to(tl.int64) * num_rows + row) * HEADS + head
        part_top = tl.load(tops + at, mask=inside, other=0.0)
        part_total = tl.load(totals + at, mask=inside, other=0.0)
        part_mix = tl.load(mixed + at[:, None] * WIDTH + lanes[None, :], mask=fits, other=0.0)
        new = tl.maximum(top, part_top)
        decay, weight = tl.exp(top - new), tl.exp(part_top - new)
        total = total * decay + part_total * weight
        mix = mix * decay[:, None] + part_mix * weight[:, None]
        top = new
    # A row that saw no token gets zeros.
    mix = mix / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out + (row.to(tl.int64) * HEADS + head)[:, None] * WIDTH + lanes[None, :],
        mix.to(out.dtype.element_ty),
        mask=fits,
    )
