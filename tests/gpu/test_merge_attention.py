"""The kernel that merges two attentions, against one softmax over the keys of both."""

import pytest
import torch
from torch import Tensor

from data_engine_kernels import reference

pytestmark = pytest.mark.gpu


@pytest.fixture
def merge(device):
    from data_engine_kernels import merge_triton

    return merge_triton.merge_attention


def attention(query_THD: Tensor, key_SHD: Tensor, value_SHD: Tensor) -> tuple[Tensor, Tensor]:
    """Mixed values [T, H, D] and log-sum-exps [H, T], in the dtype of what is given."""
    scores = torch.einsum("thd,shd->hts", query_THD, key_SHD)
    return torch.einsum("hts,shd->thd", scores.softmax(-1), value_SHD), scores.logsumexp(-1)


def parts(device: torch.device, dtype: torch.dtype, tokens: int, heads: int, width: int, spread: float = 1.0):
    """Two attentions, as flash attention leaves them, and the one over the keys of both, in fp64."""
    drawn = torch.Generator().manual_seed(tokens * heads * width)
    query, key, value = (
        torch.randn(size, heads, width, generator=drawn, dtype=torch.float64) for size in (tokens, 11, 11)
    )
    # The keys that one attention sees are far more alike to the queries of some tokens.
    query *= spread * torch.linspace(0, 1, tokens)[:, None, None]
    both, _ = attention(query, key, value)
    found = []
    for where in (slice(0, 4), slice(4, 11)):
        mixed, lse = attention(query, key[where], value[where])
        found += [mixed.to(device, dtype), lse.float().to(device)]
    return found, both.to(device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 8), (5, 3, 64), (7, 40, 80), (2, 5, 256)])
def test_it_is_one_softmax_over_the_keys_of_both(merge, device, dtype, tokens, heads, width):
    given, both = parts(device, dtype, tokens, heads, width)
    found, eager = merge(*given), reference.merge_attention(*given)
    assert (found.dtype, found.shape) == (dtype, both.shape)
    assert found.is_contiguous()
    # What is merged was rounded before, and the result is once more.
    allowed = 2 * torch.finfo(dtype).eps * both.abs().max() + 1e-6
    assert float((found.double() - both).abs().max()) <= allowed
    if dtype != torch.float32:
        assert float((found == eager).double().mean()) >= 0.98


# The interpreter's exp is numpy's, which tells of it.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_keys_that_have_all_the_weight_leave_the_others_none(merge, device):
    (one, one_lse, other, other_lse), _ = parts(device, torch.bfloat16, 4, 3, 16)
    assert torch.equal(merge(one, one_lse + 500, other, other_lse), one)
    assert torch.equal(merge(one, one_lse, other, other_lse + 500), other)


def test_heads_and_tokens_may_lie_apart(merge, device):
    """As those of one row of a batch do; log-sum-exps in either order."""
    given, _ = parts(device, torch.float32, 6, 4, 16)
    apart = [torch.randn(*(2 * size for size in one.shape), device=device) for one in given]
    for whole, one in zip(apart, given, strict=True):
        whole[tuple(slice(0, size) for size in one.shape)] = one
    cut = [whole[tuple(slice(0, size) for size in one.shape)] for whole, one in zip(apart, given, strict=True)]
    cut[1] = cut[1].T.contiguous().T
    cut[2] = cut[2].transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(merge(*cut), merge(*given))


def test_no_tokens_make_none(merge, device):
    none, lse = torch.empty(0, 3, 8, device=device), torch.empty(3, 0, device=device)
    assert merge(none, lse, none, lse).shape == (0, 3, 8)
