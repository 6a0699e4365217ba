"""Attention over parts of the keys, and how parts are merged: softmax(scale q k^T) v with its log-sum-exp.

Shapes: B batch, H query heads, G key/value heads, T and S tokens, D head width.
"""

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from data_engine.models.device import sent

# Since torch 2.12; before, fewer key/value heads than query heads were not part of what varlen_attn promises.
VARLEN_TAKES_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters


class Scores(NamedTuple):
    """How a layer makes its scores of queries and keys."""

    scale: float
    softcap: float | None = None
    """scores are c tanh(score / c), as Gemma 2 has it"""


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Plain causal attention over the new tokens."""
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def attention_with_lse(
    query_BGTD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, scores: Scores, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mixed values [B, G, T, D], and the log-sum-exp of the scores [B, G, T, 1], fp32.

    `bias`: 0 where a query sees a key, else -inf, of a shape that expands to [B, G, T, S]. A query that sees no key
    has zeros, and a log-sum-exp of -inf.
    """
    fused = query_BGTD.device.type == "cpu" and scores.softcap is None and key_BGSD.shape[-1] == value_BGSD.shape[-1]
    if fused and (bias is None or bool((bias > -torch.inf).any(-1).all())):
        mixed, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_BGTD, key_BGSD, value_BGSD, attn_mask=None if bias is None else bias.to(query_BGTD.dtype),
            scale=scores.scale,
        )  # fmt: skip
        return mixed, lse[..., None]
    raw = product_fp32(query_BGTD, key_BGSD.transpose(2, 3)).mul_(scores.scale)
    if scores.softcap is not None:
        raw.div_(scores.softcap).tanh_().mul_(scores.softcap)
    return mix(raw if bias is None else raw.add_(bias), value_BGSD)


def causal_with_lse(query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention of one sequence on CPU [H, T, D], and the log-sum-exp of its scores [H, T, 1], fp32."""
    mixed, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_HTD[None], key_HTD[None], value_HTD[None], is_causal=True, scale=scale
    )
    return mixed[0], lse[0, ..., None]


class Bounds(NamedTuple):
    """Boundaries of sequences that are packed into one row, as varlen attention takes them."""

    starts: Tensor
    """int32 [sequences + 1]: the first token of each, and the end of the last"""
    longest: int
    """tokens of the longest"""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Bounds":
        """Of sequences of these lengths; empty ones are left out."""
        lengths = torch.tensor([0, *(length for length in lengths if length)], dtype=torch.int32)
        return cls(sent(lengths.cumsum(0, dtype=torch.int32), device), int(lengths.max()))


def has_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether `flash` supports heads of that width: in half precision, on GPUs from Ampere on."""
    half = dtype in (torch.bfloat16, torch.float16)
    fits = width % 8 == 0 and width <= 256
    return half and fits and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def flash(
    query_THD: Tensor, key_SGD: Tensor, value_SGD: Tensor, queries: Bounds, keys: Bounds, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of the i-th sequence of queries to the i-th sequence of keys, for all i in one call, if has_flash.

    Returns the mixed values [T, H, D] and the log-sum-exps of the scores, fp32 [H, T]. `causal` is for sequences of
    queries and keys that are the same.
    """
    bounds = queries.starts, keys.starts, queries.longest, keys.longest
    if not VARLEN_TAKES_GQA:
        # The operator behind varlen_attn, which torch 2.11 shares. Remove this branch when setup.cfg asks for 2.12.
        mixed, lse, *_ = torch.ops.aten._flash_attention_forward(
            query_THD, key_SGD, value_SGD, *bounds, 0.0, causal, False, scale=scale
        )
        return mixed, lse
    return varlen_attn(
        query_THD, key_SGD, value_SGD, *bounds,
        return_aux=AuxRequest(lse=True),
        scale=scale,
        # (tokens to the left, to the right) that a query sees; -1 is all of them.
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query_THD.shape[1] != key_SGD.shape[1],
    )  # fmt: skip


def merged(one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Attention over two sets of keys from that over each of them, fp32 (online softmax, arXiv:1805.02867).

    A query must see a key of `one`.
    """
    return torch.lerp(one.float(), other.float(), torch.sigmoid(other_lse - one_lse))


def with_sinks(mixed: Tensor, lse: Tensor, sinks: Tensor | None) -> Tensor:
    """`mixed` [..., D] with a share of the softmax given to a sink, whose score is `sinks`, of lse's shape, and whose
    value is 0.
    """
    return mixed if sinks is None else mixed * torch.sigmoid(lse - sinks.float())


def product_fp32(one: Tensor, other: Tensor) -> Tensor:
    """one @ other [B, G, T, S], fp32: sums over products of half precision are not rounded to it, nor are they in flash
    attention. A score of 8 that is rounded to bf16 may be off by 0.016, which is what its weight is then off by.
    """
    if one.dtype == torch.float32:
        return one @ other
    if not one.is_cuda:
        return one.float() @ other.float()
    # matmul takes no out_dtype; nor does bmm on CPU.
    found = torch.bmm(one.flatten(0, 1), other.flatten(0, 1), out_dtype=torch.float32)
    return found.unflatten(0, one.shape[:2])


def mix(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(scores) @ values, and the log-sum-exp of the scores, both fp32. Overwrites the scores, which are fp32."""
    # Finite, so that a query that sees no key gives zeros instead of NaN.
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    mixed = product_fp32(weights.to(values.dtype), values).div_(total.clamp(min=torch.finfo(torch.float32).tiny))
    return mixed, total.log_().add_(top)
