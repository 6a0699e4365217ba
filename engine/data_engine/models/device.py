"""Where a model runs and in which precision: what --device and --dtype mean; tensors on their way there and back."""

from typing import NamedTuple

import torch
from torch import Tensor

from data_engine.errors import UserError


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to the device without synchronising: a GPU copies it from pinned memory."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class HostCopy:
    """A tensor of the device, copied to the host without synchronising; one of the host stays as it is."""

    def __init__(self, values: Tensor) -> None:
        """Start the copy."""
        self._values, self._arrived = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            # Of the tensor's device, which need not be the current one.
            self._arrived = torch.cuda.current_stream(values.device).record_event()

    def read(self) -> Tensor:
        """The copy. Waits for what was launched before it, not for what was launched after it."""
        if self._arrived:
            self._arrived.synchronize()
        return self._values


class Target(NamedTuple):
    """Where a model runs, and in which precision."""

    device: torch.device
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        """As --dtype spells it."""
        return str(self.dtype).removeprefix("torch.")


def pick_device(device: str) -> torch.device:
    """ "auto" is cuda where there is one. Raises UserError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unknown = UserError(f"unknown device {device!r}; expected auto, cpu, cuda or cuda:N")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise unknown from error
    if chosen.type not in ("cpu", "cuda"):
        raise unknown
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r} was asked for, but torch sees no GPU")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device!r} was asked for, but torch sees {torch.cuda.device_count()} of them, counted from 0; "
            "each rank of a machine takes one"
        )
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on cuda and float32 elsewhere. Raises UserError for a dtype that is none of the three."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"unknown dtype {dtype!r}; expected auto, float32, bfloat16 or float16")
    return getattr(torch, dtype)
