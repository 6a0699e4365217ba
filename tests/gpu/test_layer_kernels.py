"""The kernels for a layer's small operations, against the same formulas in fp64."""

import contextlib
import copy

import pytest
import torch
from roundings import DTYPES, assert_close, drawn
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

import data_engine_kernels
from data_engine.models.layers.fused import fuse_operations
from data_engine.models.layers.merged_linear import merge_linears
from data_engine_kernels import reference

pytestmark = pytest.mark.gpu
# Of rotary embedding: LLaMA's, GLM's, Hunyuan's and Cohere's.
WAYS = pytest.mark.parametrize(
    ("neighbours", "in_fp32"), [(False, False), (True, False), (False, True), (True, True)],
    ids=["halves", "neighbours", "halves in fp32", "neighbours in fp32"],
)  # fmt: skip


@pytest.fixture
def kernel(device):
    from data_engine_kernels import layer_triton

    return layer_triton


def test_gate_and_up_may_each_lie_otherwise(kernel, device):
    whole = drawn(device, torch.float32, 3, 4, 48)
    gate, up = whole[:, :, :16], whole[:, :, 16:32]
    expected = kernel.act_and_mul(gate.contiguous(), up.contiguous(), "silu")
    for some, other in ((gate, up.contiguous()), (drawn(device, torch.float32, 4, 3, 16).transpose(0, 1), up)):
        some = some.copy_(gate)
        assert torch.equal(kernel.act_and_mul(some, other, "silu"), expected)


def tables(device: torch.device, dtype: torch.dtype, batch: int, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of drawn angles; those of the two halves of a head differ, which only some models' do not."""
    angles = drawn(device, torch.float32, batch, tokens, width) * 3
    return angles.cos().to(dtype), angles.sin().to(dtype)


@DTYPES
@pytest.mark.parametrize("width", [2, 8, 64, 128])
def test_neighbours_may_be_laid_apart(kernel, device, dtype, width):
    """Parts of heads, as latent attention has them, beside one head of keys."""
    query, key = (drawn(device, dtype, 2, count, 3, 16 + width)[..., 16:] for count in (5, 1))
    cos, sin = tables(device, dtype, 2, 3, width)
    found, eager = (one((query, key), cos, sin, apart=True) for one in (kernel.apply_rotary, reference.apply_rotary))
    first = [table[..., : width // 2].repeat_interleave(2, -1) for table in (cos, sin)]
    for ours, theirs, given in zip(found, eager, (query, key), strict=True):
        exact = turned_in_fp64(given, *first, neighbours=True)
        exact = torch.cat((exact[..., ::2], exact[..., 1::2]), -1)
        rounding = torch.finfo(dtype).eps * (2 * float(given.abs().max()) + exact.abs())
        assert bool(((ours.double() - exact).abs() <= rounding).all())
        assert torch.equal(ours, theirs)


def turned_in_fp64(heads: Tensor, cos: Tensor, sin: Tensor, neighbours: bool = False) -> Tensor:
    """Each pair (n, n + D/2), or (2 n, 2 n + 1), by its own angles, one number after the other."""
    half, out = heads.shape[-1] // 2, torch.empty(heads.shape, dtype=torch.float64, device=heads.device)
    for n in range(half):
        first, second = (2 * n, 2 * n + 1) if neighbours else (n, n + half)
        left, right = heads[..., first].double(), heads[..., second].double()
        at = [table[:, None, :, first].double() for table in (cos, sin)]
        behind = [table[:, None, :, second].double() for table in (cos, sin)]
        out[..., first] = left * at[0] - right * at[1]
        out[..., second] = right * behind[0] + left * behind[1]
    return out


@DTYPES
@pytest.mark.parametrize(
    ("batch", "heads", "groups", "tokens", "width"),
    [(1, 1, 1, 1, 2), (3, 4, 4, 1, 16), (1, 6, 2, 7, 20), (2, 40, 3, 2, 64), (2, 7, 7, 3, 256), (1, 3, 20, 2, 128)],
)
@WAYS
def test_rotary_embedding_turns_each_pair(
    kernel, device, dtype, batch, heads, groups, tokens, width, neighbours, in_fp32
):
    # Queries and keys as they lie in one merged product.
    whole = drawn(device, dtype, batch, tokens, (heads + groups) * width)
    query, key = (
        part.unflatten(-1, (-1, width)).transpose(1, 2)
        for part in whole.split([heads * width, groups * width], -1)
    )  # fmt: skip
    for cos, sin in (tables(device, dtype, batch, tokens, width), tables(device, dtype, 1, tokens, width)):
        found, eager = (
            one((query, key), cos, sin, neighbours=neighbours, in_fp32=in_fp32)
            for one in (kernel.apply_rotary, reference.apply_rotary)
        )
        for ours, theirs, given in zip(found, eager, (query, key), strict=True):
            exact = turned_in_fp64(given, cos, sin, neighbours)
            # Of two numbers that cancel out, the rounding of each is left.
            products = torch.float32 if in_fp32 else dtype
            rounding = torch.finfo(products).eps * 2 * float(given.abs().max()) + torch.finfo(dtype).eps * exact.abs()
            assert bool(((ours.double() - exact).abs() <= rounding).all())
            assert torch.equal(ours, theirs)
            assert ours.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("neighbours", [False, True])
def test_tables_may_be_of_fp32_where_the_sum_is(kernel, device, dtype, neighbours):
    heads = drawn(device, dtype, 2, 3, 5, 16)
    cos, sin = tables(device, torch.float32, 2, 5, 16)
    [found], [eager] = (one([heads], cos, sin, neighbours=neighbours, in_fp32=True)
                        for one in (kernel.apply_rotary, reference.apply_rotary))  # fmt: skip
    exact = turned_in_fp64(heads, cos, sin, neighbours)
    assert found.dtype == dtype
    assert bool(((found.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 1e-5).all())
    assert torch.equal(found, eager)


def test_queries_keys_and_tables_may_each_lie_otherwise(kernel, device):
    query, key = drawn(device, torch.float32, 2, 3, 5, 8), drawn(device, torch.float32, 2, 5, 7, 24)
    key = key[:, :, 2:5, 8:16].transpose(1, 2)
    cos, sin = tables(device, torch.float32, 2, 5, 24)
    given = query, key, cos[..., :8], sin[:, :, 8:16].clone(memory_format=torch.contiguous_format)
    for ours, heads in zip(kernel.apply_rotary(given[:2], *given[2:]), given[:2], strict=True):
        torch.testing.assert_close(ours.double(), turned_in_fp64(heads, *given[2:]), rtol=0, atol=2e-6)


def test_rows_and_heads_may_lie_more_than_32_bits_apart(kernel, device):
    """Three of them, in memory that is not touched between them."""
    apart = 2**30 + 16
    whole = torch.empty(2 * apart + 8, dtype=torch.bfloat16, device=device)
    rows = whole.as_strided((3, 8), (apart, 1)).copy_(drawn(device, torch.bfloat16, 3, 8))
    some, weight = rows.contiguous(), torch.ones(8, dtype=torch.bfloat16, device=device)
    assert torch.equal(kernel.rms_norm(rows, weight, 1e-6), kernel.rms_norm(some, weight, 1e-6))
    for given in ((rows, some), (some, rows)):
        assert torch.equal(kernel.act_and_mul(*given, "silu"), kernel.act_and_mul(some, some, "silu"))
    cos, sin = tables(device, torch.bfloat16, 1, 1, 4)
    found, expected = (one.apply_rotary([each[None, :, None]], cos, sin)[0]
                       for one, each in ((kernel, rows), (reference, some)))  # fmt: skip
    assert torch.equal(found, expected)


# The interpreter's exp is numpy's, which tells of it.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 1, 64), (1, 3, 1100), (2, 3, 40)], ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_an_mlp_multiplies_the_activation_of_gate_with_up(kernel, device, dtype, shape, activation):
    # Parts of a merged product. exp overflows for the last gate, whose activation is 0.
    gate, up = drawn(device, dtype, *shape[:-1], 2 * shape[-1]).split(shape[-1], -1)
    gate[..., -1] = -120
    x = gate.double()
    bent = {"silu": x, "gelu_tanh": 2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)}[activation]
    # 1 + tanh(y) is 2 / (1 + exp(-2 y)).
    exact = x / (1 + (-bent).exp()) * up.double()
    found, eager = (one(gate, up, activation) for one in (kernel.act_and_mul, reference.act_and_mul))
    assert found.is_contiguous()
    # exp(y) is off by as many digits as y has.
    assert_close(found, eager, exact, in_fp32=12)
    assert not found[..., -1].any()


@DTYPES
@pytest.mark.parametrize(("width", "turned"), [(20, 6), (64, 16), (80, 78)])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("neighbours", [False, True])
def test_what_the_tables_do_not_reach_stays_and_one_tensor_may_come_alone(
    kernel, device, dtype, width, turned, number, neighbours
):
    heads = [drawn(device, dtype, 2, count, 3, width) for count in (5, 2)][:number]
    cos, sin = tables(device, dtype, 2, 3, turned)
    found, eager = (
        one(heads, cos, sin, neighbours=neighbours) for one in (kernel.apply_rotary, reference.apply_rotary)
    )
    assert len(found) == number
    for ours, theirs, given in zip(found, eager, heads, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours[..., turned:], given[..., turned:])
        exact = turned_in_fp64(given[..., :turned], cos, sin, neighbours)
        rounding = torch.finfo(dtype).eps * 2 * float(given.abs().max())
        assert float((ours[..., :turned].double() - exact).abs().max()) <= rounding


# numpy, which the interpreter computes with, tells of each.
@pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero):RuntimeWarning")
@DTYPES
@pytest.mark.parametrize("at", [float("inf"), -float("inf"), float("nan"), "largest", 0.0], ids=str)
def test_numbers_that_are_none_or_too_large_go_where_the_model_s_code_has_them_go(kernel, device, dtype, at):
    """A square overflows, a sum does, a row is 0 and so is epsilon: found by torch, which the kernels stand for."""
    largest = torch.finfo(dtype).max
    rows = drawn(device, dtype, 4, 1, 40)
    rows[1] = largest if at == "largest" else at
    rows[2, 0, 3], rows[3, 0, 39] = rows[1, 0, 0], -rows[1, 0, 0]
    weight = drawn(device, dtype, 40)
    cos, sin = tables(device, dtype, 4, 1, 10)
    for number, (found, eager) in enumerate([
        *((one.rms_norm(rows, weight, 0.0, offset) for one in (kernel, reference)) for offset in (None, 0.0, 1.0)),
        (one.rms_norm(rows, weight, 0.0, 0.0, centred=True) for one in (kernel, reference)),
        *(
            (one.act_and_mul(*given, activation) for one in (kernel, reference))
            for activation in ("silu", "gelu_tanh")
            for given in ((rows, rows.flip(0)), (rows.flip(0), rows))
        ),
        (one.apply_rotary([rows.view(4, 4, 1, 10)], cos, sin)[0] for one in (kernel, reference)),
    ]):  # fmt: skip
        for is_so in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(is_so(found), is_so(eager)), number
        digits = max(2 * torch.finfo(dtype).eps, 1e-6)
        torch.testing.assert_close(found, eager, rtol=digits, atol=digits, equal_nan=True)


def test_no_rows_make_none(kernel, device):
    none = torch.empty(0, 1, 8, device=device)
    weight, tables = torch.ones(8, device=device), torch.empty(0, 1, 8, device=device)
    assert kernel.rms_norm(none, weight, 1e-5).shape == (0, 1, 8)
    assert kernel.act_and_mul(none, none, "silu").shape == (0, 1, 8)
    heads = none.view(0, 1, 1, 8)
    assert [one.shape for one in kernel.apply_rotary((heads, heads), tables, tables)] == [(0, 1, 1, 8)] * 2


@DTYPES
def test_the_rows_beside_a_row_do_not_change_its_bits(kernel, device, dtype):
    rows, weight = drawn(device, dtype, 37, 1, 64), drawn(device, dtype, 64)
    cos, sin = tables(device, dtype, 37, 1, 32)

    def made(some: Tensor, at: list[int]) -> list[Tensor]:
        heads = some.view(len(some), 1, 2, 32).transpose(1, 2)
        return [
            kernel.rms_norm(some, weight, 1e-5),
            kernel.rms_norm(some, weight, 1e-5, 0.0, centred=True),
            kernel.rms_norm(some, weight, 1e-5, gate=some),
            kernel.act_and_mul(some, some, "silu"),
            *kernel.apply_rotary((heads, heads), cos[at], sin[at]),
            *kernel.apply_rotary((heads, heads), cos[at], sin[at], neighbours=True, in_fp32=True),
            *kernel.apply_rotary((heads, heads), cos[at], sin[at], apart=True),
        ]

    together = made(rows, list(range(37)))
    for at in ([20], list(reversed(range(37))), [5, 36, 0]):
        for some, whole in zip(made(rows[at].contiguous(), at), together, strict=True):
            assert torch.equal(some, whole[at])


def llama(device: torch.device, dtype: torch.dtype) -> tuple[LlamaModel, LlamaModel]:
    """Two layers of LLaMA, whose norms have drawn weights, as they are and by kernels."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=48, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, rms_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = LlamaModel(config).eval()
    for weight in plain.parameters():
        torch.nn.init.normal_(weight, std=0.2 if weight.dim() > 1 else 1)
    fused = copy.deepcopy(plain.to(device, dtype))
    assert merge_linears(fused) == 4
    assert fuse_operations(fused) == 9
    return plain, fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_decoder_by_kernels_computes_what_its_own_code_does(device, dtype, monkeypatch):
    plain, fused = llama(device, dtype)
    if device.type == "cpu":
        monkeypatch.setattr(data_engine_kernels, "use_triton", lambda tensor: True)
        monkeypatch.setattr(data_engine_kernels, "_launching_on", lambda device: contextlib.nullcontext())
    ids = torch.arange(21, device=device).view(3, 7)
    found, expected = (one(input_ids=ids, use_cache=False).last_hidden_state for one in (fused, plain))
    exact = plain.double()(input_ids=ids, use_cache=False).last_hidden_state
    error, own_error = (float((one.double() - exact).abs().max()) for one in (found, expected))
    # Both round the same things, if not at the same numbers.
    assert error <= 2 * own_error + 1e-6
    assert own_error < (1e-4 if dtype == torch.float32 else 0.5)
