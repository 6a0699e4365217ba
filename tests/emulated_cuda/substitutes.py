"""Operations that torch has for GPUs alone, on the CPU."""

import torch
from torch import Tensor
from torch.nn.attention import varlen  # noqa: F401  It registers torch_attn.


def product(one: Tensor, other: Tensor, out_dtype: torch.dtype) -> Tensor:
    """mm and bmm whose sums are not rounded."""
    assert one.dtype == other.dtype, "a product of two dtypes"
    return one.to(out_dtype) @ other.to(out_dtype)


def sequences(
    query: Tensor, key: Tensor, value: Tensor, starts_q: Tensor, starts_k: Tensor, max_q: int, max_k: int,
    is_causal: bool = False, scale: float | None = None, window_size: list[int] | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """torch_attn._varlen_attn: attention of packed sequences [T, H, D], and log-sum-exps [H, T]."""
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert query.dtype in (torch.bfloat16, torch.float16), "flash attention is for half precision"
    assert starts_q.dtype == starts_k.dtype == torch.int32
    causal = is_causal or window_size == [-1, 0]
    assert causal or window_size in (None, [-1, -1]), window_size
    places_q, places_k = starts_q.tolist(), starts_k.tolist()
    assert (places_q[-1], places_k[-1]) == (len(query), len(key))
    out, lse = torch.empty_like(query), torch.empty(query.shape[1], len(query))
    shared = query.shape[1] // key.shape[1]
    for begin_q, end_q, begin_k, end_k in zip(places_q, places_q[1:], places_k, places_k[1:], strict=False):
        assert end_q - begin_q <= max_q
        assert end_k - begin_k <= max_k
        keys, values = (one[begin_k:end_k].float().repeat_interleave(shared, 1).transpose(0, 1) for one in (key, value))
        scores = query[begin_q:end_q].float().transpose(0, 1) @ keys.transpose(1, 2)
        scores *= scale if scale is not None else query.shape[-1] ** -0.5
        if causal:
            assert end_q - begin_q == end_k - begin_k
            scores += torch.full(scores.shape[1:], -torch.inf).triu(1)
        lse[:, begin_q:end_q] = scores.logsumexp(-1)
        out[begin_q:end_q] = (scores.softmax(-1) @ values).transpose(0, 1).to(out.dtype)
    return out, lse, torch.empty(0)


def counted(numbers: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """histc of integers, in bins of one integer each, as experts count their tokens."""
    assert (min, max) == (0, bins - 1)
    assert not numbers.dtype.is_floating_point
    return numbers.long().bincount(minlength=bins).to(numbers.dtype)


SUBSTITUTES = {
    torch.ops.aten.histc.default: counted,
    torch.ops.aten.mm.dtype: product,
    torch.ops.aten.bmm.dtype: product,
    torch.ops.torch_attn._varlen_attn.default: sequences,
}
