"""The eager formulas: the reference that every kernel is tested against, and the path on CPU.

Shapes: N rows of hidden states, V vocabulary, D width; R decode rows, G key/value heads, g query heads for each of
them (H = G x g), D head width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from data_engine_kernels import onednn
from data_engine_kernels.layouts import USUAL, LayerCaches, RowIndex, Special

Activation = Literal["silu", "gelu_tanh"]
# Rows of logits that exist at once: bounds memory to CHUNK x V for any number of answers.
CHUNK = 1024
# Rows of a head's weight that are converted to fp32 at a time.
VOCABULARY_PART = 4096
# The maximum of no scores. With minus infinity, subtracting it from itself would give NaN.
LOWEST = torch.finfo(torch.float32).min


def logits_fp32(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """hidden @ weight^T accumulated and returned in fp32 [N, V]: bf16 logits are off by 0.06 nat on 120 tokens."""
    if onednn.can_pack(weight_VD):
        return onednn.product(hidden_ND, onednn.packed(weight_VD))
    if hidden_ND.dtype == torch.float32:
        return hidden_ND @ weight_VD.T
    if hidden_ND.is_cuda:
        return torch.mm(hidden_ND, weight_VD.T, out_dtype=torch.float32)
    # A CPU has no such product. The weight is converted in parts, so that it is never there twice as a whole.
    hidden_ND = hidden_ND.float()
    return torch.cat([hidden_ND @ part.float().T for part in weight_VD.split(VOCABULARY_PART)], dim=1)


def check_targets(targets_N: Tensor, vocabulary: int) -> None:
    """Raises ValueError where a target lies outside [0, vocabulary)."""
    if not len(targets_N):
        return
    least, most = torch.stack(targets_N.aminmax()).tolist()
    if least < 0 or most >= vocabulary:
        raise ValueError(f"target ids must lie in [0, {vocabulary}), got {least} to {most}")


def on_device(targets_N: Tensor, device: torch.device) -> Tensor:
    """Targets there; from the host they are copied without waiting for the device."""
    if targets_N.device == device:
        return targets_N
    return targets_N.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else targets_N.to(device)


def token_logps(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probability of each target token, in nats, fp32 [N].

    Targets may lie on the host: they are checked there then, and nothing waits for the device.
    Source: log-softmax at the target; DPO's log pi(y|x), arXiv:2305.18290, eq. 7.
    Raises ValueError where a target lies outside [0, V).
    """
    check_targets(targets_N, len(weight_VD))
    targets_N = on_device(targets_N, hidden_ND.device)
    parts = []
    for hidden, targets in zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), strict=True):
        logits = logits_fp32(hidden, weight_VD)
        # cross_entropy subtracts the largest logit first; logit - logsumexp would lose digits of large logits.
        parts.append(-F.cross_entropy(logits, targets, reduction="none"))
    return torch.cat(parts) if parts else torch.empty(0, device=hidden_ND.device)


def grouped_decode_attention(
    query_RHD: Tensor, caches: LayerCaches, rows: RowIndex, scale: float, special: Special = USUAL
) -> Tensor:
    """One new token a row: softmax(scale * q . [prefix | own suffix]) over the values of both, [R, H, D].

    The new token is the last one of the suffix, so a window of W tokens begins W tokens before the suffix's end.

    The scores of a question's rows against its prefix are one product, of as many rows as a question may have; those of
    a suffix are one over all of its pages. So no product's shape follows from the rows beside, see docs/gpu.md.
    Reads lengths on the host, so it cannot be captured in a CUDA graph.
    Source: attention in two parts merged by their log-sum-exp (online softmax, arXiv:1805.02867).
    """
    num_rows, heads, width = query_RHD.shape
    groups, page = caches.keys.shape[1:3]
    # The query heads that share a key/value head become rows of one product.
    query = query_RHD.unflatten(1, (groups, -1))
    keys, values = (_unpaged(pool, rows.pages) for pool in (caches.keys, caches.values))
    own = _partial(query, keys, values, rows.suffix_lengths[:, None, None, None], scale, special)
    # Rows without a prefix keep these values, which change nothing in the merge.
    prefix = torch.zeros_like(own[0]), torch.zeros_like(own[1]), torch.full_like(own[2], LOWEST)
    for slot, (length, members) in enumerate(zip(rows.prefix_lengths.tolist(), rows.members.tolist(), strict=True)):
        there = [row for row in members if row >= 0]
        if not there or not length:
            continue
        # In the place of members that the slot has not, any other row.
        lanes = [max(row, 0) for row in members]
        lane = query[lanes].transpose(0, 1).reshape(groups, -1, width)
        its = rows.prefix_pages[slot : slot + 1, : -(-length // page)]
        keys, values = (_unpaged(pool, its)[0, :, :length] for pool in (caches.keys, caches.values))
        ends = (length + rows.suffix_lengths[lanes]).repeat_interleave(heads // groups)[:, None]
        for whole, part in zip(prefix, _partial(lane, keys, values, ends, scale, special), strict=True):
            part = part.view(groups, len(members), heads // groups, -1).transpose(0, 1)
            whole[there] = part[: len(there)]
    return _merge(own, prefix).to(query.dtype).view(num_rows, heads, width)


def _unpaged(pool_NGSD: Tensor, pages_RC: Tensor) -> Tensor:
    """The tokens of each line's pages in order: a copy [R, G, C x S, D]."""
    return pool_NGSD[pages_RC].transpose(1, 2).flatten(2, 3)


def _partial(
    query: Tensor, keys: Tensor, values: Tensor, ends: Tensor, scale: float, special: Special
) -> tuple[Tensor, ...]:
    """Softmax over a part of the tokens: unnormalised values, sum of weights, and the maximum that was subtracted.

    `ends`: where the sequence of each query ends, counted from the part's first token.
    """
    scores = (query @ keys.transpose(-1, -2)).float() * scale
    if special.softcap is not None:
        scores = torch.tanh(scores / special.softcap) * special.softcap
    places = torch.arange(keys.shape[-2], device=keys.device)
    unseen = places >= ends
    if special.window is not None:
        unseen |= places < ends - special.window
    scores = scores.masked_fill(unseen, -torch.inf)
    # Without any token: a finite maximum, and all weights 0.
    top = scores.amax(-1, keepdim=True).clamp(min=LOWEST)
    weights = (scores - top).exp()
    return (weights.to(values.dtype) @ values).float(), weights.sum(-1, keepdim=True), top


def _merge(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Tensor:
    """The softmax over both parts; zeros where neither part has a token."""
    top = torch.maximum(one[2], other[2])
    scale_one, scale_other = (one[2] - top).exp(), (other[2] - top).exp()
    total = one[1] * scale_one + other[1] * scale_other
    return (one[0] * scale_one + other[0] * scale_other) / total.where(total > 0, 1)


def merge_attention(one_THD: Tensor, one_lse_HT: Tensor, other_THD: Tensor, other_lse_HT: Tensor) -> Tensor:
    """Attention over two sets of keys from that over each of them, with their log-sum-exps in fp32 [H, T]; [T, H, D].

    Mixed in fp32, rounded once. Source: online softmax, arXiv:1805.02867.
    """
    share = torch.sigmoid(other_lse_HT - one_lse_HT).T[:, :, None]
    return torch.lerp(one_THD.float(), other_THD.float(), share).to(one_THD.dtype)


def rms_norm(
    rows: Tensor,
    weight_D: Tensor | None,
    epsilon: float,
    offset: float | None = None,
    *,
    centred: bool = False,
    gate: Tensor | None = None,
) -> Tensor:
    """rows [..., D] / sqrt(mean of squares + epsilon), times the weight, if there is one; in fp32 up to that product.

    With an `offset`, the product is in fp32 too, and with weight + offset: Gemma's weights are one less. Rows that are
    `centred` have their mean taken off first. With a `gate` [..., D], the product is multiplied with gate *
    sigmoid(gate), in fp32. Source: arXiv:1910.07467, eq. 4, and arXiv:1607.06450, eq. 4, for centred ones; rounded as
    by transformers' LlamaRMSNorm, GemmaRMSNorm (1), Gemma3nRMSNorm and NemotronHRMSNorm (0), CohereLayerNorm (0,
    centred) and Qwen3_5RMSNormGated (gate).
    """
    normed = rows.float()
    if centred:
        normed = normed - normed.mean(-1, keepdim=True)
    normed = normed * torch.rsqrt(normed.pow(2).mean(-1, keepdim=True) + epsilon)
    if weight_D is None:
        made = normed.type_as(rows)
    elif offset is None:
        made = weight_D * normed.to(rows.dtype)
    else:
        made = (normed * (offset + weight_D.float())).type_as(rows)
    return made if gate is None else (made * F.silu(gate.float())).type_as(rows)


def apply_rotary(
    heads: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    *,
    neighbours: bool = False,
    in_fp32: bool = False,
    apart: bool = False,
) -> tuple[Tensor, ...]:
    """Heads [B, H, T, D], as those of queries and keys, turned by the tables [B, T, R], or [1, T, R] for all.

    Numbers n and n + R / 2 of a head are a pair, or 2 n and 2 n + 1 where pairs are `neighbours`; those from R on stay.
    Neighbours that are to lie `apart` come out as n and n + R / 2, both turned by number n of the tables.
    Source: arXiv:2104.09864, eq. 34; rounded as by transformers' apply_rotary_pos_emb, after each product and the sum,
    or once, after a sum `in_fp32`.
    """
    cos, sin = cos[:, None], sin[:, None]
    if apart:
        cos, sin = (table[..., : table.shape[-1] // 2].repeat(1, 1, 1, 2) for table in (cos, sin))

    def turned(part: Tensor) -> Tensor:
        if apart:
            part = torch.cat((part[..., ::2], part[..., 1::2]), -1)
        if neighbours and not apart:
            partner = torch.stack((-part[..., 1::2], part[..., ::2]), -1).flatten(-2)
        else:
            left, right = part.chunk(2, -1)
            partner = torch.cat((-right, left), -1)
        if in_fp32:
            return (part.float() * cos + partner.float() * sin).type_as(part)
        return part * cos + partner * sin

    width = cos.shape[-1]
    if all(one.shape[-1] == width for one in heads):
        return tuple(map(turned, heads))
    return tuple(torch.cat((turned(one[..., :width]), one[..., width:]), -1) for one in heads)


def act_and_mul(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up, [..., D]: gate * sigmoid(gate), or GELU by its formula with tanh.

    Source: SwiGLU and GEGLU, arXiv:2002.05202, eq. 6, without their products; arXiv:1606.08415 for GELU's tanh.
    """
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up
