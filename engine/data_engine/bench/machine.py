"""What a bench runs on: its names and versions, the most that it can do, the time and the memory of a call."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from data_engine.models.sharding.placement import total_memory_bytes
from data_engine.processes import cpu_limit
from data_engine.sampling.memory import peak_bytes


def machine(device: torch.device) -> dict:
    """The device by name, and the CPU cores and threads of this process."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else os.uname().machine
    return {"device": name, "cores": cpu_limit.num_cores(), "threads": torch.get_num_threads()}


def versions(device: torch.device) -> dict[str, str]:
    """Of what computes on this device."""
    found = {"torch": torch.__version__}
    if device.type == "cuda":
        import triton

        found |= {"triton": triton.__version__, "cuda": torch.version.cuda}
    return found


def free_bytes(device: torch.device, fraction: float) -> int:
    """What is left beside the models that are loaded: on a GPU a share of what is free, else all."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * fraction)
    return total_memory_bytes(device)


def settled(device: torch.device) -> float:
    """The time, after all work that was launched on the device has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(call: Callable[[], object], device: torch.device, times: int) -> list[float]:
    """The seconds of each of several calls."""
    spent = []
    for _ in range(times):
        start = settled(device)
        call()
        spent.append(settled(device) - start)
    return spent


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The best of six: a large matrix product in FLOP/s, and reading a large buffer in bytes/s."""
    side = 8192 if device.type == "cuda" else 2048
    square = torch.randn(side, side, device=device).to(dtype)
    buffer = torch.zeros((4 << 30 if device.type == "cuda" else 256 << 20) // 4, device=device)
    return {
        "matmul_flops": 2 * side**3 / min(seconds_of(lambda: square @ square, device, 6)),
        "read_bytes": buffer.nbytes / min(seconds_of(buffer.sum, device, 6)),
    }


class PeakMemory:
    """The most memory at one time since `start`, bytes: of the GPU's tensors, or of this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        # Linux: resets the peak of the resident set.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int | None:
        return peak_bytes(self.device) or None
