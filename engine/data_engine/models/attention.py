"""The attention hook: one attention function for every decoder of transformers, which a layout can take over.

A decoder loaded by a family has `attn_implementation` NAME. Without a layout, it is transformers' own causal sdpa. With
`layout=...`, each layer passes its queries, keys and values (after rotary embedding) to that layout, which says which
tokens attend to which: `Prefill` and those of sampling/native for sampling, those of scoring/packed_attention.py for
scoring. So a family knows neither sampling nor scoring, and no mask over several answers is ever built.

Shapes: B batch, H query heads, G key/value heads, T and S tokens, P prefix tokens, D head width.
"""

import inspect
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import AuxRequest, varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "data_engine"
# Since torch 2.12; before, fewer key/value heads than query heads were not part of what varlen_attn promises.
VARLEN_TAKES_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters


class Layout(Protocol):
    """Which tokens attend to which in one forward pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [B, H, T, D], key and value [B, G, T, D] of the new tokens -> mixed values [B, H, T, D]."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    layout: Layout | None = None,
    **options,
) -> tuple[Tensor, None]:
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return layout.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


# No mask function is registered under NAME, on purpose: transformers then builds no mask.
ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Plain causal attention over the new tokens."""
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def attention_with_lse(query_GTD: Tensor, key_GSD: Tensor, value_GSD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v without a mask [G, T, D], and the log-sum-exp of the scores [G, T, 1], fp32."""
    if query_GTD.device.type == "cpu":
        mixed, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_GTD[None], key_GSD[None], value_GSD[None], scale=scale
        )
        return mixed[0], lse[0, ..., None]
    return mix((query_GTD @ key_GSD.transpose(1, 2)).float().mul_(scale), value_GSD)


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
        return cls(lengths.cumsum(0, dtype=torch.int32).to(device), int(lengths.max()))


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
    """Attention over two sets of keys from that over each of them, fp32 (online softmax, arXiv:1805.02867)."""
    return torch.lerp(one.float(), other.float(), torch.sigmoid(other_lse - one_lse))


def mix(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(scores) @ values, and the log-sum-exp of the scores, both fp32. Overwrites the scores, which are fp32."""
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    return (weights.to(values.dtype) @ values).float().div_(total), total.log_().add_(top)


class Prefill:
    """The layout of one prompt: causal. Writes each layer's keys and values into the given tensors [G, P, D]."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.keys[layer].copy_(key[0])
        self.values[layer].copy_(value[0])
        return causal(query, key, value, scale)


def forward(decoder: nn.Module, embeds_BTD: Tensor, positions_BT: Tensor, layout: Layout | None = None) -> Tensor:
    """Last hidden states [B, T, D] of one pass of the decoder; without a layout, attention is causal."""
    return decoder(
        inputs_embeds=embeds_BTD, position_ids=positions_BT, use_cache=False, layout=layout
    ).last_hidden_state


def positions(start: int, stop: int, device: torch.device) -> Tensor:
    """Position ids [1, stop - start]."""
    return torch.arange(start, stop, device=device)[None]
