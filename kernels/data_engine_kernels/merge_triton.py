"""Two attentions of the same queries over different keys become the one over all of them, in one launch.

In plain torch, both are converted to fp32, mixed and converted back, which reads and writes six times as much.

Shapes: T tokens, H heads, D head width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from data_engine_kernels.attention_parts import cast

# Numbers that a program has at a time, of one token's heads.
NUMBERS = 1024


def merge_attention(one_THD: Tensor, one_lse_HT: Tensor, other_THD: Tensor, other_lse_HT: Tensor) -> Tensor:
    """reference.merge_attention: [T, H, D], contiguous. Each head's numbers must lie side by side."""
    tokens, heads, width = one_THD.shape
    out = torch.empty(tokens, heads, width, dtype=one_THD.dtype, device=one_THD.device)
    if not tokens:
        return out
    lanes = triton.next_power_of_2(width)
    block = max(NUMBERS // lanes, 1)
    merge_attention_kernel[(tokens, triton.cdiv(heads, block))](
        one_THD,
        one_lse_HT,
        other_THD,
        other_lse_HT,
        out,
        *one_THD.stride()[:2],
        *other_THD.stride()[:2],
        *one_lse_HT.stride(),
        *other_lse_HT.stride(),
        HEADS=heads,
        WIDTH=width,
        LANES=lanes,
        BLOCK=block,
        INTERPRETED=not one_THD.is_cuda,
        num_warps=4,
    )
    return out


# The heads of log-sum-exps lie as far apart as there are tokens: the same binary for any number of them.
@triton.jit(do_not_specialize=["one_lse_head", "one_lse_token", "other_lse_head", "other_lse_token"])
def merge_attention_kernel(
    one,
    one_lse,
    other,
    other_lse,
    out,
    one_token,
    one_head,
    other_token,
    other_head,
    one_lse_head,
    one_lse_token,
    other_lse_head,
    other_lse_token,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """BLOCK heads of one token. The arguments behind `out` are strides."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lanes = tl.arange(0, LANES)
    inside = head < HEADS
    there = inside[:, None] & (lanes < WIDTH)[None, :]
    far = head.to(tl.int64)
    difference = tl.load(one_lse + far * one_lse_head + token * one_lse_token, mask=inside, other=0.0)
    difference -= tl.load(other_lse + far * other_lse_head + token * other_lse_token, mask=inside, other=0.0)
    weight = (1.0 / (1.0 + tl.exp(difference)))[:, None]
    at = token * one_token + head[:, None] * one_head + lanes[None, :]
    left = tl.load(one + at, mask=there, other=0.0).to(tl.float32)
    at = token * other_token + head[:, None] * other_head + lanes[None, :]
    right = tl.load(other + at, mask=there, other=0.0).to(tl.float32)
    mixed = left + weight * (right - left)
    to = out + (token * HEADS + head[:, None]) * WIDTH + lanes[None, :]
    tl.store(to, cast(mixed, out.dtype.element_ty, INTERPRETED), mask=there)
