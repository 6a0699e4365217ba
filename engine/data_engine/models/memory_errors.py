"""Memory that ran out, whatever a library calls it: to be retried in halves, or, where models are split, the end."""

import contextlib
import re
from collections.abc import Iterator

import torch

from data_engine.errors import LostRankError, UserError, first_line
from data_engine.models.base import VisionLanguageModel
from data_engine.models.checkpoints.json_files import ModelError
from data_engine_kernels import CannotLaunch

# What cuBLAS, cuDNN, CUDA graphs, Triton's launcher, NCCL, oneDNN and torch's CPU allocator say instead of
# OutOfMemoryError.
OTHER_NAMES = re.compile(
    r"out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation"
    r"|can't allocate memory|Failed to allocate|could not create a primitive$",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, and nothing else is wrong."""
    named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return named or (isinstance(error, RuntimeError) and OTHER_NAMES.search(str(error)) is not None)


@contextlib.contextmanager
def naming_out_of_memory(model: VisionLanguageModel) -> Iterator[None]:
    """Inside, memory that runs out is torch.OutOfMemoryError, by whatever name a library raises it.

    Where the model is split it is a LostRankError: other ranks wait in the same call, which cannot be repeated. A
    kernel that this machine cannot launch is a UserError: fewer rows would not help.
    """
    try:
        yield
    except LostRankError:
        raise
    except CannotLaunch as error:
        raise UserError(str(error)) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
        if model.is_split:
            raise LostRankError(
                f"out of memory in a split model ({reason}): lower --max_new_tokens, or split over more ranks"
            ) from None
        # Without the first one's traceback, which keeps the tensors of the call.
        raise torch.OutOfMemoryError(reason) from None


@contextlib.contextmanager
def naming_no_room(mend: str) -> Iterator[None]:
    """Inside, while a model is loaded, memory that runs out is a ModelError; `mend` says what to do about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(f"memory ran out while the model was loaded ({first_line(error)}); {mend}") from None
