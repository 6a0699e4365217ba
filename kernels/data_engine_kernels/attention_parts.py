"""The two Triton kernels of attention_triton, which launches them and says how they divide the work.

A part of a softmax is stored as unnormalised values [C, R, H, D], the sum of their weights [C, R, H] and the maximum
that was subtracted [C, R, H], in fp32.

WINDOW is the tokens that a new one sees, itself included, and SOFTCAP the c of c tanh(score / c); without, they are 0
and None, and take no instruction. Of a part that lies before a row's window, nothing is stored for the row, nor read.

Shapes: R rows, H query heads, D head width, C parts: those of the prefix first, then those of the suffix.
"""

import triton
import triton.language as tl

# The window of a query that is padding: it begins behind all tokens.
NOWHERE = tl.constexpr(2**30)
# A maximum that is subtracted where a tile has no token for a query yet: of minus infinity, that would give NaN.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def cast(numbers, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 as dtype, rounded to nearest even as on a GPU; Triton's interpreter would truncate to bf16."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = numbers.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        numbers = bits.to(tl.float32, bitcast=True)
    return numbers.to(dtype)


@triton.jit
def _tanh(x):
    """To 4e-7 of itself, by its series up to 1/4, and by exp from there on: Triton's own is not in its interpreter."""
    square = tl.minimum(x * x, 1 / 16)
    near = x + x * square * (-1 / 3 + square * (2 / 15 - square * (17 / 315)))
    # Of the absolute value, so that exp does not overflow.
    small = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - small) / (1.0 + small)
    return tl.where(square < 1 / 16, near, tl.where(x < 0, -far, far))


@triton.jit
def _part(
    query,
    keys,
    values,
    mixed,
    totals,
    tops,
    pages,
    row,
    head,
    start,
    length,
    since,
    part_row,
    scale,
    query_row_stride,
    query_head_stride,
    page_stride,
    token_stride,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One part: queries (row, head) over tokens from start to the end of the part or the length; row -1 is padding.

    Token n of the sequence is token n % PAGE of page number n // PAGE. `since`: with a window, the first token that
    each query sees.
    """
    lanes = tl.arange(0, LANES)
    stop = tl.minimum(start + SPLIT, length)
    there = row >= 0
    if WINDOW:
        # A row changes by none of the tiles that it does not see, so it does not matter for whom they are read.
        start = tl.maximum(start, tl.min(since, 0) // TOKENS * TOKENS)
        there = there & (since < stop)
    fits = (lanes < WIDTH)[None, :]
    query_at = row.to(tl.int64) * query_row_stride + head * query_head_stride
    q = tl.load(query + query_at[:, None] + lanes[None, :], mask=there[:, None] & fits, other=0.0)
    if INTERPRETED:
        # Triton's interpreter multiplies the bits of bf16 as integers; in fp32 the products are exact, as on a GPU.
        q = q.to(tl.float32)
    top = tl.full([row.shape[0]], LOWEST if WINDOW else -float("inf"), tl.float32)
    total = tl.zeros([row.shape[0]], tl.float32)
    mix = tl.zeros([row.shape[0], LANES], tl.float32)
    for first in range(start, stop, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        seen = tokens < stop
        # A tile lies in one page.
        base = tl.load(pages + first // PAGE).to(tl.int64) * page_stride
        at = (first % PAGE + tl.arange(0, TOKENS))[:, None] * token_stride + lanes[None, :]
        k = tl.load(keys + base + at, mask=seen[:, None] & fits, other=0.0)
        v = tl.load(values + base + at, mask=seen[:, None] & fits, other=0.0)
        if INTERPRETED:
            k = k.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if SOFTCAP is not None:
            scores = SOFTCAP * _tanh(scores / SOFTCAP)
        scores = tl.where(seen[None, :], scores, -float("inf"))
        if WINDOW:
            scores = tl.where(tokens[None, :] >= since[:, None], scores, -float("inf"))
        new = tl.maximum(top, tl.max(scores, 1))
        decay = tl.exp(top - new)
        weights = tl.exp(scores - new[:, None])
        total = total * decay + tl.sum(weights, 1)
        weights = cast(weights, v.dtype, INTERPRETED)
        if INTERPRETED:
            weights, v = weights.to(tl.float32), v.to(tl.float32)
        mix = tl.dot(weights, v, mix * decay[:, None], input_precision="ieee")
        top = new
    at = (part_row + row) * HEADS + head
    tl.store(totals + at, total, mask=there)
    tl.store(tops + at, top, mask=there)
    tl.store(mixed + at[:, None] * WIDTH + lanes[None, :], mix, mask=there[:, None] & fits)


# Not specialised for numbers of rows, slots, pages, or room for prefixes: the same binary for all of them.
@triton.jit(
    do_not_specialize=["num_rows", "prefix_tasks", "prefix_parts", "own_parts", "prefix_pages_of", "own_pages_of"],
    do_not_specialize_on_alignment=["pages", "prefix_pages"],
)
def parts_kernel(
    query,
    keys,
    values,
    prefix_lengths,
    suffix_lengths,
    members,
    pages,
    prefix_pages,
    tasks,
    count,
    mixed,
    totals,
    tops,
    scale,
    num_rows,
    prefix_tasks,
    prefix_parts,
    own_parts,
    prefix_pages_of,
    own_pages_of,
    query_row_stride,
    query_head_stride,
    page_stride,
    group_stride,
    token_stride,
    MOST: tl.constexpr,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    OWN: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    QUERY_TILES: tl.constexpr,
    PREFIX_QUERIES: tl.constexpr,
    SUFFIX_QUERIES: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The parts of the list, each for one key/value head at a time; those of prefixes come first, and take longest."""
    # What does not change from part to part is computed again, since it would take registers of the products.
    for number in tl.range(tl.program_id(0), tl.load(count) * GROUPS, tl.num_programs(0), disable_licm=True):
        task = tl.load(tasks + number // GROUPS)
        group = number % GROUPS
        base = group.to(tl.int64) * group_stride
        if task < prefix_tasks:
            part = task % prefix_parts
            slot = task // (prefix_parts * QUERY_TILES)
            query_tile = task // prefix_parts % QUERY_TILES
            many = query_tile * PREFIX_QUERIES + tl.arange(0, PREFIX_QUERIES)
            rows = tl.load(members + slot * MOST + many // SHARED, mask=many < MOST * SHARED, other=-1).to(tl.int32)
            length = tl.load(prefix_lengths + slot).to(tl.int32)
            since = rows
            if WINDOW:
                behind = tl.load(suffix_lengths + rows, mask=rows >= 0, other=0).to(tl.int32)
                since = tl.where(rows >= 0, length + behind - WINDOW, NOWHERE)
            _part(
                query,
                keys + base,
                values + base,
                mixed,
                totals,
                tops,
                prefix_pages + slot * prefix_pages_of,
                rows,
                group * SHARED + many % SHARED,
                part * SPLIT,
                length,
                since,
                part.to(tl.int64) * num_rows,
                scale,
                query_row_stride,
                query_head_stride,
                page_stride,
                token_stride,
                GROUPS * SHARED,
                WIDTH,
                LANES,
                SPLIT,
                PAGE,
                TOKENS,
                WINDOW,
                SOFTCAP,
                INTERPRETED,
            )
        else:
            part = (task - prefix_tasks) % own_parts
            own = (task - prefix_tasks) // own_parts
            few = tl.arange(0, SUFFIX_QUERIES)
            length = tl.load(suffix_lengths + own).to(tl.int32)
            _part(
                query,
                keys + base,
                values + base,
                mixed,
                totals,
                tops,
                pages + own * own_pages_of,
                tl.where(few < SHARED, own, -1),
                group * SHARED + few % SHARED,
                part * OWN,
                length,
                tl.where(few < SHARED, length - WINDOW, NOWHERE),
                (prefix_parts + part).to(tl.int64) * num_rows,
                scale,
                query_row_stride,
                query_head_stride,
                page_stride,
                token_stride,
                GROUPS * SHARED,
                WIDTH,
                LANES,
                OWN,
                PAGE,
                TOKENS,
                WINDOW,
                SOFTCAP,
                INTERPRETED,
            )


# Slots may begin anywhere in a larger tensor.
@triton.jit(do_not_specialize=["num_rows", "prefix_parts_room"], do_not_specialize_on_alignment=["slots"])
def merge_kernel(
    mixed,
    totals,
    tops,
    slots,
    prefix_lengths,
    suffix_lengths,
    out,
    num_rows,
    prefix_parts_room,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    OWN: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The softmax over a row's parts, for BLOCK heads."""
    row = tl.program_id(0)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lanes = tl.arange(0, LANES)
    inside = head < HEADS
    fits = inside[:, None] & (lanes < WIDTH)[None, :]
    slot = tl.load(slots + row)
    prefix = tl.load(prefix_lengths + slot, mask=slot >= 0, other=0).to(tl.int32)
    own = tl.load(suffix_lengths + row).to(tl.int32)
    prefix_parts = tl.cdiv(prefix, SPLIT)
    parts = prefix_parts + tl.cdiv(own, OWN)
    begin = 0
    if WINDOW:
        # The part of the first token that the row sees; it stored nothing of those before.
        since = prefix + own - WINDOW
        begin = tl.maximum(tl.where(since < prefix, since // SPLIT, prefix_parts + (since - prefix) // OWN), 0)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mix = tl.zeros([BLOCK, LANES], tl.float32)
    for number in range(begin, parts):
        part = tl.where(number < prefix_parts, number, number - prefix_parts + prefix_parts_room)
        at = (part.to(tl.int64) * num_rows + row) * HEADS + head
        part_top = tl.load(tops + at, mask=inside, other=0.0)
        part_total = tl.load(totals + at, mask=inside, other=0.0)
        part_mix = tl.load(mixed + at[:, None] * WIDTH + lanes[None, :], mask=fits, other=0.0)
        new = tl.maximum(top, part_top)
        decay, weight = tl.exp(top - new), tl.exp(part_top - new)
        total = total * decay + part_total * weight
        mix = mix * decay[:, None] + part_mix * weight[:, None]
        top = new
    # A row without any token gets zeros.
    mix = mix / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out + (row.to(tl.int64) * HEADS + head)[:, None] * WIDTH + lanes[None, :],
        cast(mix, out.dtype.element_ty, INTERPRETED),
        mask=fits,
    )
