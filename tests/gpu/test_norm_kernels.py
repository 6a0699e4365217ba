"""The kernel for a layer's norms, against the same formulas in fp64."""

import pytest
import torch
from roundings import DTYPES, assert_close, assert_rounded_alike, drawn
from torch import Tensor

from data_engine_kernels import reference

pytestmark = pytest.mark.gpu


@pytest.fixture
def kernel(device):
    from data_engine_kernels import layer_triton

    return layer_triton


def norm_in_fp64(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    rows = rows.double()
    return rows / (rows.square().sum(-1, keepdim=True) / rows.shape[-1] + epsilon).sqrt() * weight.double()


@DTYPES
@pytest.mark.parametrize("offset", [None, 0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 1, 64), (1, 7, 100), (2, 3, 5, 16), (5, 1500)], ids=str)
def test_a_norm_divides_by_the_root_of_the_mean_square(kernel, device, dtype, offset, shape):
    rows, weight = drawn(device, dtype, *shape), drawn(device, dtype, shape[-1])
    # The second row is as small as epsilon's root: without epsilon, its norm would be larger.
    rows.view(-1, shape[-1])[1:2] *= 1e-3
    found, eager = (one(rows, weight, 1e-5, offset) for one in (kernel.rms_norm, reference.rms_norm))
    assert found.is_contiguous()
    assert_close(found, eager, norm_in_fp64(rows, weight + (offset or 0), 1e-5), in_fp32=4)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 1, 64), (1, 7, 100), (2, 3, 5, 16), (5, 1500)], ids=str)
def test_the_mean_of_a_centred_norm_is_taken_off_first(kernel, device, dtype, shape):
    rows, weight = drawn(device, dtype, *shape) + 3, drawn(device, dtype, shape[-1])
    found, eager = (one(rows, weight, 1e-5, 0.0, centred=True) for one in (kernel.rms_norm, reference.rms_norm))
    exact = torch.nn.functional.layer_norm(rows.double(), shape[-1:], weight.double(), None, 1e-5)
    assert (found.dtype, found.shape) == (dtype, rows.shape)
    assert found.is_contiguous()
    # Of numbers near the mean, the rounding of the mean is left, which is as large as that of others.
    allowed = torch.finfo(dtype).eps * exact.abs() + 2e-6 * weight.double().abs() + torch.finfo(dtype).tiny
    assert bool(((found.double() - exact).abs() <= allowed).all())
    assert_rounded_alike(found, eager)


# The interpreter's exp is numpy's, which tells of it.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@DTYPES
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 5, 100), (2, 3, 5, 16), (5, 1500)], ids=str)
def test_what_a_gated_norm_makes_is_multiplied_with_the_activation_of_the_gate(kernel, device, dtype, weighted, shape):
    # The gate as a part of a product, of which exp overflows for the last number.
    rows, gate = drawn(device, dtype, *shape), drawn(device, dtype, *shape[:-1], 2 * shape[-1])[..., shape[-1] :]
    gate[..., -1] = -120
    weight = drawn(device, dtype, shape[-1]) if weighted else None
    found, eager = (one(rows, weight, 1e-5, gate=gate) for one in (kernel.rms_norm, reference.rms_norm))
    x = gate.double()
    exact = norm_in_fp64(rows, torch.ones(()) if weight is None else weight, 1e-5) * x / (1 + (-x).exp())
    assert found.is_contiguous()
    # Three roundings in the place of two; exp(y) is off by as many digits as y has.
    assert_close(found, eager, exact, in_fp32=12, roundings=3)


@pytest.mark.parametrize("cut", [
    lambda whole: whole[..., 16:32],
    lambda whole: whole[:, :, ::2, :16],
    lambda whole: whole[:, 1:, :, :16],
    lambda whole: whole[:, ::2, :, 8:24],
    lambda whole: whole.transpose(1, 2)[..., :16],
    lambda whole: whole[0, 0, 0, :16],
    lambda whole: whole[..., ::3],
    lambda whole: whole[:, :1, ::2, :16].transpose(1, 2),
    lambda whole: whole[:, :1, :1, :16].contiguous().transpose(0, 1),
    lambda whole: whole[:1, :, :3, 16:32].contiguous().transpose(0, 1),
    lambda whole: whole[:, :1, :, :16].expand(-1, 4, -1, -1),
])  # fmt: skip
def test_rows_of_a_norm_may_lie_apart(kernel, device, cut):
    """As the queries of a merged product do, for the norm of each head."""
    rows = cut(drawn(device, torch.float32, 3, 4, 6, 48))
    ones = torch.ones(16, device=device)
    found = kernel.rms_norm(rows, ones, 1e-6)
    assert torch.equal(found, kernel.rms_norm(rows.clone(memory_format=torch.contiguous_format), ones, 1e-6))
    torch.testing.assert_close(found.double(), norm_in_fp64(rows, ones, 1e-6), rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [48, 20])
def test_no_number_of_rows_compiles_another_binary(kernel, device, width, monkeypatch):
    """Triton's key of one: whether strides are divisible by 16, in a width that is not, either."""
    keys, launched = set(), kernel.rms_norm_kernel

    class Noting:
        def __getitem__(self, grid):
            def launch(rows, weight, out, num_rows, inner, *strides_and_epsilon, **options):
                keys.add(tuple(stride % 16 == 0 for stride in strides_and_epsilon[:2]))
                return launched[grid](rows, weight, out, num_rows, inner, *strides_and_epsilon, **options)

            return launch

    monkeypatch.setattr(kernel, "rms_norm_kernel", Noting())
    ones = torch.ones(width, device=device)
    for shape in ((1, 1), (5, 1), (1, 7), (1, 16), (3, 4), (2, 3)):
        kernel.rms_norm(drawn(device, torch.float32, *shape, width), ones, 1e-6)
        # Heads of a token, as parts of a merged product.
        kernel.rms_norm(drawn(device, torch.float32, *shape, 3 * width)[..., :width], ones, 1e-6)
    assert keys == {(True, width % 16 == 0)}


def test_a_norm_may_have_no_weight(kernel, device):
    rows = drawn(device, torch.float32, 3, 1, 40)
    found = kernel.rms_norm(rows, None, 1e-6, 0.0)
    torch.testing.assert_close(
        found.double(), norm_in_fp64(rows, torch.ones(40, device=device), 1e-6), rtol=1e-6, atol=0
    )
