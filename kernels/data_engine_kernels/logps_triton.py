"""token_logps as a Triton kernel: a matrix product whose tiles are reduced at once, so logits are never stored.

The vocabulary is cut into tiles of fixed width. A program multiplies one tile of rows with one tile of the vocabulary,
accumulates in fp32, and stores for each row the largest logit, the sum of exponentials relative to it, and the target's
logit if it is in the tile. A second kernel merges the tiles of a row in ascending order (online softmax,
arXiv:1805.02867). There are no atomics: the order of every sum is fixed.

Shapes: N rows, V vocabulary, D width, T tiles of the vocabulary.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from data_engine_kernels.reference import check_targets, on_device


@dataclass(frozen=True)
class Tiles:
    """Sizes of a tile, and launch options. They set the order of the sums, so they never depend on N."""

    rows: int
    columns: int
    width: int
    warps: int
    stages: int


LARGE = Tiles(rows=128, columns=256, width=64, warps=8, stages=3)
SMALL = Tiles(rows=128, columns=128, width=64, warps=8, stages=3)
FP32 = Tiles(rows=64, columns=64, width=32, warps=4, stages=3)
# Shared memory that LARGE needs; data centre cards have that much, desktop cards do not.
LARGE_BYTES = (LARGE.rows + LARGE.columns) * LARGE.width * 2 * LARGE.stages


def tiles_for(hidden: Tensor) -> Tiles:
    """The tiles for a dtype and a card; nothing else may choose them."""
    if hidden.dtype == torch.float32:
        return FP32
    if hidden.is_cuda:
        shared_bytes = torch.cuda.get_device_properties(hidden.device).shared_memory_per_block_optin
        return LARGE if shared_bytes >= LARGE_BYTES else SMALL
    return LARGE


def token_logps(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, tiles: Tiles | None = None) -> Tensor:
    """reference.token_logps without storing logits: fp32 [N], nats.

    hidden and weight have one dtype (bf16, fp16 or fp32), any first stride, and a last stride of 1. Scratch: 8 bytes a
    row and vocabulary tile. Raises ValueError where a target lies outside [0, V), or dtypes or strides do not fit.
    """
    check_targets(targets_N, len(weight_VD))
    targets_N = on_device(targets_N, hidden_ND.device)
    if hidden_ND.dtype != weight_VD.dtype or hidden_ND.stride(1) != 1 or weight_VD.stride(1) != 1:
        raise ValueError(
            "hidden and weight must have one dtype and a last stride of 1, got "
            f"{hidden_ND.dtype} {hidden_ND.stride()} and {weight_VD.dtype} {weight_VD.stride()}"
        )
    tiles = tiles or tiles_for(hidden_ND)
    (rows, width), vocabulary = hidden_ND.shape, len(weight_VD)
    logps, target_logits = (torch.empty(rows, dtype=torch.float32, device=hidden_ND.device) for _ in range(2))
    if not rows:
        return logps
    row_tiles, column_tiles = triton.cdiv(rows, tiles.rows), triton.cdiv(vocabulary, tiles.columns)
    # Each at an address of its own: that of a part of one would be aligned for some numbers of rows alone.
    tops, totals = (torch.empty(column_tiles, rows, dtype=torch.float32, device=hidden_ND.device) for _ in range(2))
    _parts_kernel[(row_tiles * column_tiles,)](
        hidden_ND,
        weight_VD,
        targets_N.contiguous(),
        tops,
        totals,
        target_logits,
        rows,
        vocabulary,
        width,
        hidden_ND.stride(0),
        weight_VD.stride(0),
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        WIDTH=tiles.width,
        EVEN=width % tiles.width == 0,
        BAND=8,
        INTERPRETED=not hidden_ND.is_cuda,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    _merge_kernel[(triton.cdiv(rows, 64),)](
        tops, totals, target_logits, logps, rows, column_tiles, ROWS=64, TILES=32, num_warps=4
    )
    return logps


# Not specialised for the number of rows: the same binary for every batch.
@triton.jit(do_not_specialize=["num_rows"])
def _parts_kernel(
    hidden,
    weight,
    targets,
    tops,
    totals,
    target_logits,
    num_rows,
    vocabulary,
    width,
    hidden_stride,
    weight_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    BAND: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Largest logit and sum of exponentials of ROWS rows over COLUMNS of the vocabulary, [T, N] each."""
    # Programs that run at the same time share BAND tiles of rows and few of the vocabulary, which stay in the L2 cache.
    column_tiles = tl.cdiv(vocabulary, COLUMNS)
    band = tl.program_id(0) // (BAND * column_tiles)
    within = tl.program_id(0) % (BAND * column_tiles)
    height = tl.minimum(tl.cdiv(num_rows, ROWS) - band * BAND, BAND)
    column_tile = within // height
    rows = (band * BAND + within % height) * ROWS + tl.arange(0, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    lanes = tl.arange(0, WIDTH)
    # Past the end the last row is read again, which needs no mask in the loop; its result is not stored.
    hidden_at = hidden + tl.minimum(rows, num_rows - 1).to(tl.int64)[:, None] * hidden_stride + lanes[None, :]
    weight_at = weight + tl.minimum(columns, vocabulary - 1).to(tl.int64)[None, :] * weight_stride + lanes[:, None]
    logits = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, width, WIDTH):
        if EVEN:
            a = tl.load(hidden_at + start)
            b = tl.load(weight_at + start)
        else:
            a = tl.load(hidden_at + start, mask=(start + lanes < width)[None, :], other=0.0)
            b = tl.load(weight_at + start, mask=(start + lanes < width)[:, None], other=0.0)
        if INTERPRETED:
            # Triton's interpreter multiplies the bits of bf16 as integers; in fp32 the products are exact, as on a GPU.
            a, b = a.to(tl.float32), b.to(tl.float32)
        logits = tl.dot(a, b, logits, input_precision="ieee")
    logits = tl.where((columns < vocabulary)[None, :], logits, -float("inf"))
    top = tl.max(logits, 1)
    inside = rows < num_rows
    part = column_tile.to(tl.int64) * num_rows + rows
    tl.store(tops + part, top, mask=inside)
    tl.store(totals + part, tl.sum(tl.exp(logits - top[:, None]), 1), mask=inside)
    target = tl.load(targets + rows, mask=inside, other=-1)
    hit = columns[None, :] == target[:, None]
    # Exactly one tile of the vocabulary contains a row's target.
    tl.store(
        target_logits + rows, tl.sum(tl.where(hit, logits, 0.0), 1), mask=inside & (target // COLUMNS == column_tile)
    )


@triton.jit(do_not_specialize=["num_rows"])
def _merge_kernel(tops, totals, target_logits, logps, num_rows, column_tiles, ROWS: tl.constexpr, TILES: tl.constexpr):
    """Target's logit minus log-sum-exp, from the parts [T, N], TILES at a time in ascending order."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    safe = tl.minimum(rows, num_rows - 1)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, column_tiles, TILES):
        tile = start + tl.arange(0, TILES)
        part = tile.to(tl.int64)[:, None] * num_rows + safe[None, :]
        there = (tile < column_tiles)[:, None]
        part_top = tl.load(tops + part, mask=there, other=-float("inf"))
        part_total = tl.load(totals + part, mask=there, other=0.0)
        new = tl.maximum(top, tl.max(part_top, 0))
        total = total * tl.exp(top - new) + tl.sum(part_total * tl.exp(part_top - new[None, :]), 0)
        top = new
    # The largest logit is subtracted first: logit - logsumexp would lose digits of large logits.
    logp = (tl.load(target_logits + safe) - top) - tl.log(total)
    tl.store(logps + rows, logp, mask=rows < num_rows)
