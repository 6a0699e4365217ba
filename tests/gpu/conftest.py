"""Kernels run on CUDA or, unchanged, in Triton's interpreter, which tests/kernels/test_interpreted.py starts."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("no CUDA device")
    return torch.device("cpu")


@pytest.fixture(autouse=True)
def memory_starts_as_nan(monkeypatch):
    """What a kernel forgets to write, or reads without having written, shows up in its result."""
    empty = torch.empty

    def filled(*shape, **options) -> torch.Tensor:
        made = empty(*shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture
def rows_keep_their_bits(monkeypatch, device):
    """The interpreter takes products by numpy, which on some CPUs rounds a row by where it lies in its matrix.

    For tests of whether a kernel asks for the same product: a row's bits are its own here, if less exact.
    """

    def matmul(left: np.ndarray, right: np.ndarray, dtype: type) -> np.ndarray:
        return np.einsum("...ik,...kj->...ij", left, right, dtype=dtype)

    if device.type == "cpu":
        monkeypatch.setattr("triton.runtime.interpreter.np.matmul", matmul)
