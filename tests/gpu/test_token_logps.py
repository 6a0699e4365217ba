"""The kernel for log-probs of targets, against log-softmax in fp64."""

import pytest
import torch
from torch import Tensor

from data_engine_kernels import reference

pytestmark = pytest.mark.gpu
# Small enough that tiny shapes have several tiles each way.
TINY = {"rows": 16, "columns": 32, "width": 16, "warps": 4, "stages": 2}


@pytest.fixture
def kernel(device):
    from data_engine_kernels import logps_triton

    return logps_triton


def problem(rows: int, width: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows * vocabulary)
    hidden, weight = (torch.randn(size, width, generator=generator) for size in (rows, vocabulary))
    # Logits grow along the vocabulary, so that the maximum moves on from tile to tile.
    weight *= torch.linspace(0.2, 2, vocabulary)[:, None]
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    return hidden.to(device, dtype), weight.to(device, dtype), targets.to(device)


def exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden.double() @ weight.double().T
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def error(found: Tensor, expected: Tensor) -> float:
    # A NaN anywhere makes this NaN, which passes no comparison.
    return float((found.double() - expected).abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "width", "vocabulary"),
    # One row; whole tiles; ragged in every direction; more tiles of rows than one band, and parts than one merge step.
    [(1, 16, 32), (32, 32, 64), (5, 40, 97), (1, 1, 1), (133, 24, 33), (2, 16, 1100)],
)
def test_it_is_log_softmax_at_the_target(kernel, device, rows, width, vocabulary, dtype):
    made = problem(rows, width, vocabulary, dtype, device)
    found = kernel.token_logps(*made, kernel.Tiles(**TINY))
    assert found.dtype == torch.float32
    # bf16 products are exact in fp32, so the allowance is the eager formula's own error in fp32, whatever the dtype.
    eager = reference.token_logps(made[0].float(), made[1].float(), made[2])
    assert error(found, exact(*made)) <= error(eager, exact(*made)) + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_tiles_that_are_used_in_earnest_give_the_same(kernel, device, dtype):
    made = problem(130, 80, 300, dtype, device)
    eager = reference.token_logps(made[0].float(), made[1].float(), made[2])
    assert error(kernel.token_logps(*made), exact(*made)) <= error(eager, exact(*made)) + 1e-5


def test_every_token_of_the_vocabulary_is_found_in_its_tile(kernel, device):
    hidden, weight, _ = problem(1, 16, 70, torch.float32, device)
    logps = kernel.token_logps(
        hidden.expand(70, 16).contiguous(), weight, torch.arange(70, device=device), kernel.Tiles(**TINY)
    )
    assert float(logps.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_no_rows_give_no_logps(kernel, device):
    assert kernel.token_logps(*problem(0, 16, 40, torch.float32, device)).shape == (0,)


def test_huge_logits_stay_finite(kernel, device):
    hidden, weight = torch.full((2, 4), 100.0, device=device), torch.eye(4, device=device) * 100
    found = kernel.token_logps(hidden, weight, torch.tensor([0, 3], device=device), kernel.Tiles(**TINY))
    # Four equal logits of 10,000: log(1/4), to the last digits.
    assert found.tolist() == pytest.approx([-1.3862944] * 2, abs=1e-6)


def test_addresses_are_aligned_for_any_number_of_rows_so_that_one_binary_serves_all(kernel, device, monkeypatch):
    """Triton compiles another one for a pointer that is no multiple of 16: 5 rows x 3 tiles x 4 bytes are none."""
    given = []

    class Launched:
        def __getitem__(self, grid):
            return lambda *tensors, **options: given.extend(one for one in tensors if isinstance(one, Tensor))

    for name in ("_parts_kernel", "_merge_kernel"):
        monkeypatch.setattr(kernel, name, Launched())
    kernel.token_logps(*problem(5, 16, 150, torch.float32, device))
    assert len(given) == 10
    assert [tuple(one.shape) for one in given if one.data_ptr() % 16] == []


@pytest.mark.parametrize("target", [-1, 97])
def test_a_target_outside_the_vocabulary_is_refused(kernel, device, target):
    hidden, weight, _ = problem(1, 16, 97, torch.float32, device)
    with pytest.raises(ValueError, match=rf"\[0, 97\), got {target} to {target}"):
        kernel.token_logps(hidden, weight, torch.tensor([target], device=device))


def test_a_second_run_gives_the_same_bits(kernel, device):
    made = problem(20, 32, 70, torch.bfloat16, device)
    assert torch.equal(*(kernel.token_logps(*made, kernel.Tiles(**TINY)) for _ in range(2)))


@pytest.mark.usefixtures("rows_keep_their_bits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_rows_beside_a_row_do_not_change_its_bits(kernel, device, dtype):
    hidden, weight, targets = problem(37, 32, 100, dtype, device)
    tiles = kernel.Tiles(**TINY)
    whole = kernel.token_logps(hidden, weight, targets, tiles)
    assert torch.equal(kernel.token_logps(hidden.flip(0), weight, targets.flip(0), tiles).flip(0), whole)
    for row in (0, 20):
        alone = kernel.token_logps(hidden[row : row + 1], weight, targets[row : row + 1], tiles)
        assert torch.equal(alone, whole[row : row + 1])


def test_rows_may_lie_apart_but_numbers_of_a_row_may_not(kernel, device):
    hidden, weight, targets = problem(8, 32, 97, torch.float32, device)
    tiles = kernel.Tiles(**TINY)
    apart = kernel.token_logps(hidden[::2, :16], weight[:, :16], targets[::2], tiles)
    close = [part.contiguous() for part in (hidden[::2, :16], weight[:, :16], targets[::2])]
    assert torch.equal(apart, kernel.token_logps(*close, tiles))
    with pytest.raises(ValueError, match="last stride of 1"):
        kernel.token_logps(hidden[:, ::2], weight[:, ::2], targets, tiles)
