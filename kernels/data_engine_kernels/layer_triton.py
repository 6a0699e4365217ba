"""The small operations of a decoder layer as Triton kernels: norm, rotary embedding, and the activation of an MLP.

As a model's code writes them, they are eight, ten and two launches each, of which every one reads and writes the rows.
Here each is one launch. They round where the code of transformers does, so that only a sum in another order, or another
exponential, can make a number round otherwise. A row is computed alone: its bits depend neither on how many rows there
are nor on its place.

Shapes: B batch, T tokens, H and G query and key/value heads, D width of a row or head.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from data_engine_kernels.attention_parts import cast
from data_engine_kernels.reference import Activation

# Numbers that a program has at a time: of a norm, of rotary embedding, and of an MLP's product.
NORM_NUMBERS, ROTARY_NUMBERS, PRODUCT_NUMBERS = 1024, 2048, 1024


def rms_norm(
    rows: Tensor,
    weight_D: Tensor | None,
    epsilon: float,
    offset: float | None = None,
    *,
    centred: bool = False,
    gate: Tensor | None = None,
) -> Tensor:
    """reference.rms_norm: [..., D], contiguous. Rows may lie apart, their numbers may not."""
    width = rows.shape[-1]
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    num_rows = out.numel() // width
    if not num_rows:
        return out
    rows, inner, strides = _laid_out(rows)
    lanes = triton.next_power_of_2(width)
    block = max(NORM_NUMBERS // lanes, 1)
    rms_norm_kernel[(triton.cdiv(num_rows, block),)](
        rows,
        weight_D,
        out,
        num_rows,
        inner,
        *strides,
        epsilon,
        None if gate is None else gate.contiguous(),
        WIDTH=width,
        LANES=lanes,
        ROWS=block,
        OFFSET=offset,
        CENTRED=centred,
        INTERPRETED=not rows.is_cuda,
        num_warps=min(max(lanes // 512, 4), 16),
    )
    return out


def apply_rotary(
    heads: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    *,
    neighbours: bool = False,
    in_fp32: bool = False,
    apart: bool = False,
) -> tuple[Tensor, ...]:
    """reference.apply_rotary of one or two tensors, each token's heads side by side in memory."""
    first, last = heads[0], heads[-1]
    batch, _, tokens, width = first.shape
    counts = [one.shape[1] for one in heads]
    made = tuple(
        torch.empty(batch, tokens, count, width, dtype=first.dtype, device=first.device).transpose(1, 2)
        for count in counts
    )
    if not batch * tokens:
        return made
    half = cos.shape[-1] // 2
    lanes = triton.next_power_of_2(half)
    block = min(max(ROTARY_NUMBERS // (2 * lanes), 1), triton.next_power_of_2(max(counts)))
    cos, sin = (table.expand(batch, -1, -1) for table in (cos, sin))
    blocks = [triton.cdiv(count, block) for count in counts]
    rotary_kernel[(batch * tokens, sum(blocks))](
        first,
        last,
        cos,
        sin,
        made[0],
        made[-1],
        tokens,
        *first.stride()[:3],
        *last.stride()[:3],
        *cos.stride()[:2],
        *sin.stride()[:2],
        HEADS=counts[0],
        GROUPS=counts[-1],
        WIDTH=width,
        HALF=half,
        LANES=lanes,
        BLOCK=block,
        QUERY_BLOCKS=blocks[0],
        NEIGHBOURS=neighbours or apart,
        APART=apart,
        IN_FP32=in_fp32,
        INTERPRETED=not first.is_cuda,
        num_warps=4,
        # The compiler would multiply and add bf16 in one instruction, which rounds once.
        enable_fp_fusion=False,
    )
    return made


def act_and_mul(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """reference.act_and_mul: [..., D], contiguous. Rows may lie apart, their numbers may not."""
    width = gate.shape[-1]
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    num_rows = out.numel() // width
    if not num_rows:
        return out
    (gate, inner, gate_strides), (up, of_up, up_strides) = map(_laid_out, (gate, up))
    if inner != of_up:
        return act_and_mul(gate.contiguous(), up.contiguous(), activation)
    act_and_mul_kernel[(num_rows, triton.cdiv(width, PRODUCT_NUMBERS))](
        gate,
        up,
        out,
        inner,
        *gate_strides,
        *up_strides,
        WIDTH=width,
        BLOCK=PRODUCT_NUMBERS,
        ACTIVATION=activation,
        INTERPRETED=not gate.is_cuda,
        num_warps=4,
    )
    return out


def _laid_out(rows: Tensor) -> tuple[Tensor, int, tuple[int, int]]:
    """The tensor, how many rows lie evenly side by side, and the strides of such groups and of rows in one.

    What lies evenly is one group, however many rows it has, so that their number is in no stride, by which the kernels
    are specialised. Rows in groups of groups are copied.
    """
    # Size and stride of each dimension of rows, of which those that lie as one dimension are one.
    groups: list[tuple[int, int]] = []
    for size, stride in zip(rows.shape[:-1], rows.stride()[:-1], strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == size * stride:
            size *= groups.pop()[0]
        groups.append((size, stride))
    if len(groups) > 2 or (rows.stride(-1) != 1 and rows.shape[-1] > 1):
        return _laid_out(rows.contiguous())
    # A single row is as far from the next as in a tensor that it fills.
    (_, outer_stride), (inner, inner_stride) = [(1, 0), *(groups or [(1, rows.shape[-1])])][-2:]
    return rows, inner, (outer_stride, inner_stride)


@triton.jit
def _rounded(numbers, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 as dtype, and back."""
    return cast(numbers, dtype, INTERPRETED).to(tl.float32)


# Not specialised for numbers of rows: the same binary for all of them. For strides it is, by which loads are wide.
@triton.jit(do_not_specialize=["num_rows", "inner"])
def rms_norm_kernel(
    rows,
    weight,
    out,
    num_rows,
    inner,
    outer_stride,
    inner_stride,
    epsilon,
    gate,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    OFFSET: tl.constexpr,
    CENTRED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """ROWS rows of WIDTH numbers."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, LANES)
    there = (row < num_rows)[:, None] & (lanes < WIDTH)[None, :]
    at = row // inner * outer_stride + row % inner * inner_stride
    x = tl.load(rows + at[:, None] + lanes[None, :], mask=there, other=0.0).to(tl.float32)
    if CENTRED:
        x = tl.where(there, x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
    x *= tl.rsqrt(tl.sum(x * x, 1) / WIDTH + epsilon)[:, None]
    dtype = out.dtype.element_ty
    if weight is not None:
        w = tl.load(weight + lanes, mask=lanes < WIDTH, other=0.0).to(tl.float32)[None, :]
        if OFFSET is not None:
            x *= OFFSET + w
        else:
            x = _rounded(x, dtype, INTERPRETED) * w
    if gate is not None:
        g = tl.load(gate + row[:, None] * WIDTH + lanes[None, :], mask=there, other=0.0).to(tl.float32)
        x = _rounded(x, dtype, INTERPRETED) * (g / (1.0 + tl.exp(-g)))
    tl.store(out + row[:, None] * WIDTH + lanes[None, :], cast(x, dtype, INTERPRETED), mask=there)


@triton.jit
def _rotate(
    heads,
    out,
    head_stride,
    first,
    cos,
    sin,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    APART: tl.constexpr,
    IN_FP32: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """BLOCK heads of one token, whose tables are at cos and sin."""
    head = (first + tl.arange(0, BLOCK)).to(tl.int64)
    lanes = tl.arange(0, LANES)
    fits = (lanes < HALF)[None, :]
    there = (head < COUNT)[:, None] & fits
    # Where the pairs of a head begin, and how far behind that the other number of each is.
    if NEIGHBOURS:
        pairs, behind = 2 * lanes[None, :], 1
    else:
        pairs, behind = lanes[None, :], HALF
    # Where they are put, and which numbers of the tables turn them.
    if APART:
        places, apart, table, table_behind = lanes[None, :], HALF, lanes[None, :], 0
    else:
        places, apart, table, table_behind = pairs, behind, pairs, behind
    start, to = heads + head[:, None] * head_stride, out + head[:, None] * WIDTH
    dtype = out.dtype.element_ty
    left = tl.load(start + pairs, mask=there, other=0.0).to(tl.float32)
    right = tl.load(start + pairs + behind, mask=there, other=0.0).to(tl.float32)
    left_cos = tl.load(cos + table, mask=fits, other=0.0).to(tl.float32)
    right_cos = tl.load(cos + table + table_behind, mask=fits, other=0.0).to(tl.float32)
    left_sin = tl.load(sin + table, mask=fits, other=0.0).to(tl.float32)
    right_sin = tl.load(sin + table + table_behind, mask=fits, other=0.0).to(tl.float32)
    # Products are rounded as the sums are.
    product_dtype: tl.constexpr = tl.float32 if IN_FP32 else dtype
    new_left = _rounded(left * left_cos, product_dtype, INTERPRETED)
    new_left -= _rounded(right * left_sin, product_dtype, INTERPRETED)
    new_right = _rounded(right * right_cos, product_dtype, INTERPRETED)
    new_right += _rounded(left * right_sin, product_dtype, INTERPRETED)
    tl.store(to + places, cast(new_left, dtype, INTERPRETED), mask=there)
    tl.store(to + places + apart, cast(new_right, dtype, INTERPRETED), mask=there)
    # What the tables do not reach is copied.
    for done in tl.static_range(2 * HALF, WIDTH, LANES):
        rest = done + lanes[None, :]
        there = (head < COUNT)[:, None] & (rest < WIDTH)
        tl.store(to + rest, tl.load(start + rest, mask=there, other=0.0), mask=there)


@triton.jit(do_not_specialize=["tokens"])
def rotary_kernel(
    query,
    key,
    cos,
    sin,
    query_out,
    key_out,
    tokens,
    query_batch_stride,
    query_head_stride,
    query_token_stride,
    key_batch_stride,
    key_head_stride,
    key_token_stride,
    cos_batch_stride,
    cos_token_stride,
    sin_batch_stride,
    sin_token_stride,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERY_BLOCKS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    APART: tl.constexpr,
    IN_FP32: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """BLOCK heads of one token: of the queries, or behind those of the keys, if there are programs for them."""
    number = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    batch, token = number // tokens, number % tokens
    cos += batch * cos_batch_stride + token * cos_token_stride
    sin += batch * sin_batch_stride + token * sin_token_stride
    if part < QUERY_BLOCKS:
        heads = query + batch * query_batch_stride + token * query_token_stride
        _rotate(
            heads, query_out + number * (HEADS * WIDTH), query_head_stride, part * BLOCK, cos, sin,
            HEADS, WIDTH, HALF, LANES, BLOCK, NEIGHBOURS, APART, IN_FP32, INTERPRETED,
        )  # fmt: skip
    else:
        heads = key + batch * key_batch_stride + token * key_token_stride
        _rotate(
            heads, key_out + number * (GROUPS * WIDTH), key_head_stride, (part - QUERY_BLOCKS) * BLOCK, cos, sin,
            GROUPS, WIDTH, HALF, LANES, BLOCK, NEIGHBOURS, APART, IN_FP32, INTERPRETED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["inner"])
def act_and_mul_kernel(
    gate,
    up,
    out,
    inner,
    gate_outer_stride,
    gate_inner_stride,
    up_outer_stride,
    up_inner_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """BLOCK numbers of one row."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = lanes < WIDTH
    group, place = row // inner, row % inner
    g = tl.load(gate + group * gate_outer_stride + place * gate_inner_stride + lanes, mask=there, other=0.0)
    u = tl.load(up + group * up_outer_stride + place * up_inner_stride + lanes, mask=there, other=0.0)
    dtype = out.dtype.element_ty
    g = g.to(tl.float32)
    y = g
    if ACTIVATION == "gelu_tanh":
        # (1 + tanh(y / 2)) / 2 is 1 / (1 + exp(-y)), without a difference of near numbers; 2 sqrt(2 / pi).
        y = 1.5957691216057308 * (g + 0.044715 * g * g * g)
    activated = _rounded(g / (1.0 + tl.exp(-y)), dtype, INTERPRETED)
    tl.store(out + row * WIDTH + lanes, cast(activated * u.to(tl.float32), dtype, INTERPRETED), mask=there)
