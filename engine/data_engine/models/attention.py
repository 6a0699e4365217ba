"""One attention function for every decoder of transformers; the layout of a pass says who sees whom.

A decoder loaded by a family has `attn_implementation` NAME. Called plainly, it is transformers' own causal sdpa.
Called with `layout=...`, its layers hand their queries, keys and values (after rotary embedding) to that layout:
`Prefill` and those of sampling/native for sampling, those of scoring/packed_attention.py for scoring. So the families
stay unaware of both, and no mask over several answers is ever built.

Shapes: B batch, H query heads, G key/value heads, T and S tokens, P prefix tokens, D head width.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "data_engine"


class Layout(Protocol):
    """Who sees whom in one forward pass."""

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


# Not registered as a mask function on purpose: transformers then builds no mask at all for it.
ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Plain causal attention over the new tokens."""
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def attention_with_lse(query_GTD: Tensor, key_GSD: Tensor, value_GSD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v, where every query sees every key [G, T, D]; log-sum-exp of the scores [G, T, 1], fp32."""
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
    """Sequences that lie one behind the other: where each begins, int32 [sequences + 1], and the longest's tokens."""

    starts: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Bounds":
        """Of sequences of these lengths; those without tokens are none."""
        lengths = torch.tensor([0, *(length for length in lengths if length)], dtype=torch.int32)
        return cls(lengths.cumsum(0, dtype=torch.int32).to(device), int(lengths.max()))


def has_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether `flash` takes heads of that width: in half precision, on a GPU since Ampere."""
    half = dtype in (torch.bfloat16, torch.float16)
    fits = width % 8 == 0 and width <= 256
    return half and fits and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def flash(
    query_THD: Tensor, key_SGD: Tensor, value_SGD: Tensor, asking: Bounds, asked: Bounds, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of each sequence of queries to the sequence of keys of the same number, [T, H, D], and the scores'
    log-sum-exps, fp32 [H, T]; with `causal`, both are the same. In one call, where has_flash says so.
    """
    mixed, lse, *_ = torch.ops.aten._flash_attention_forward(
        query_THD, key_SGD, value_SGD, asking.starts, asked.starts, asking.longest, asked.longest,
        0.0, causal, False, scale=scale,
    )  # fmt: skip
    return mixed, lse


def merged(one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """The softmax over two parts from its halves, fp32 (online softmax, arXiv:1805.02867)."""
    return torch.lerp(one.float(), other.float(), torch.sigmoid(other_lse - one_lse))


def mix(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The values mixed by the softmax of fp32 scores, and the scores' log-sum-exp, both fp32."""
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    return (weights.to(values.dtype) @ values).float().div_(total), total.log_().add_(top)


class Prefill:
    """The prompt of one question, causal; writes each layer's keys and values [G, P, D] where it is told."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.keys[layer].copy_(key[0])
        self.values[layer].copy_(value[0])
        return causal(query, key, value, scale)


def forward(decoder: nn.Module, embeds_BTD: Tensor, positions_BT: Tensor, layout: Layout | None = None) -> Tensor:
    """Last hidden states [B, T, D] of a pass; without a layout, plain causal attention."""
    return decoder(
        inputs_embeds=embeds_BTD, position_ids=positions_BT, use_cache=False, layout=layout
    ).last_hidden_state


def positions(start: int, stop: int, device: torch.device) -> Tensor:
    return torch.arange(start, stop, device=device)[None]
