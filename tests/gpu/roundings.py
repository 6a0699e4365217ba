"""Drawn numbers for the kernels' tests, and how far from fp64 what is made of them may be."""

import pytest
import torch
from torch import Tensor

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def drawn(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


def assert_close(found: Tensor, eager: Tensor, exact: Tensor, in_fp32: int, roundings: int = 2) -> None:
    """To what it is in fp64: `roundings` to the dtype, of half a digit each, and some in fp32."""
    assert found.dtype == eager.dtype
    assert found.shape == exact.shape
    allowed = torch.finfo(found.dtype).eps * roundings / 2 + in_fp32 * torch.finfo(torch.float32).eps
    # NaN passes no comparison. Halves have no digit below their smallest number.
    assert bool(((found.double() - exact).abs() <= allowed * exact.abs() + torch.finfo(found.dtype).tiny).all())
    assert_rounded_alike(found, eager)


def assert_rounded_alike(found: Tensor, eager: Tensor) -> None:
    """In half precision, a sum in another order, or another exponential, changes few numbers that are rounded alike."""
    if found.dtype != torch.float32:
        assert float((found == eager).double().mean()) >= 0.98
