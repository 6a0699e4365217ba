"""Memory that ran out is one thing, whatever a library calls it."""

from types import SimpleNamespace

import pytest
import torch

from data_engine.errors import LostRankError, UserError
from data_engine.models.memory_errors import naming_out_of_memory
from data_engine_kernels import SmallCard

WHOLE, SPLIT = SimpleNamespace(is_split=False), SimpleNamespace(is_split=True)
# As torch 2.11, Triton 3.6 and NCCL 2.27 say it.
MESSAGES = (
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "Triton Error [CUDA]: out of memory",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "NCCL error: unhandled cuda error: Failed to CUDA calloc async: out of memory",
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 B",
    "could not create a primitive",
)


def fail(model, error):
    with naming_out_of_memory(model):
        raise error


@pytest.mark.parametrize("message", MESSAGES)
def test_out_of_memory_by_another_name_is_retried_where_models_are_whole(message):
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fail(WHOLE, RuntimeError(message))
    assert str(caught.value) == message.splitlines()[0]
    # The first error's traceback holds the tensors of the call.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_out_of_memory_without_a_text_is_told_by_its_kind():
    with pytest.raises(torch.OutOfMemoryError, match=r"^MemoryError$"):
        fail(WHOLE, MemoryError())
    with pytest.raises(LostRankError, match=r"out of memory in a split model \(MemoryError\)"):
        fail(SPLIT, MemoryError())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(MESSAGES[0])])
def test_out_of_memory_in_a_split_model_is_not_retried(error):
    with pytest.raises(LostRankError, match="out of memory in a split model"):
        fail(SPLIT, error)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory"), KeyError("a")]
)
@pytest.mark.parametrize("model", [WHOLE, SPLIT])
def test_other_errors_pass_as_they_are(model, error):
    with pytest.raises(type(error)) as caught:
        fail(model, error)
    assert caught.value is error


def test_a_rank_that_was_lost_is_no_lack_of_memory():
    with pytest.raises(LostRankError, match=r"^rank 1 has ended: out of memory$"):
        fail(WHOLE, LostRankError("rank 1 has ended: out of memory"))


@pytest.mark.parametrize("model", [WHOLE, SPLIT])
def test_a_card_that_is_too_small_for_a_kernel_is_told_and_not_retried(model):
    """Half the rows would take the same kernel."""
    with pytest.raises(UserError, match=r"^a kernel needs 9 of shared memory$"):
        fail(model, SmallCard("a kernel needs 9 of shared memory"))
