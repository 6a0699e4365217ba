"""torch.cuda of the emulated device: streams, events, graphs, and what a program asks about the card."""

import contextlib
import subprocess
import tempfile
import threading
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emulated_cuda import triton_kernels
from emulated_cuda.device_tensor import DeviceTensor, read_by_python
from emulated_cuda.emulation import Emulation, written_by
from emulated_cuda.memory import CAPACITY, LaunchOrder
from emulated_cuda.recording import Recording

CARD = types.SimpleNamespace(
    name="Emulated GPU", major=9, minor=0, total_memory=CAPACITY, multi_processor_count=4,
    shared_memory_per_block_optin=232448,
)  # fmt: skip
SYNC_DEBUG_MODES = {"default": 0, "warn": 1, "error": 2}


class Event:
    """In the place of torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, **options) -> None:
        self._moment: dict[int, int] = {}

    def record(self, stream: "Stream | None" = None) -> None:
        self._moment = (stream or THE.current).moment()

    def synchronize(self) -> None:
        THE.wait_openly(self._moment, "an event")

    def query(self) -> bool:
        return all(THE.host.get(number, 0) >= launch for number, launch in self._moment.items())

    def wait(self, stream: "Stream | None" = None) -> None:
        (stream or THE.current).after(self._moment)

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


class Stream(LaunchOrder):
    """In the place of torch.cuda.Stream."""

    device = torch.device("cuda", 0)

    def __init__(self, device: object = None, priority: int = 0) -> None:
        super().__init__()

    def wait_stream(self, other: "Stream") -> None:
        self.after(other.moment())

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        THE.wait(self.moment(), "a stream")


class StreamContext:
    """In the place of torch.cuda.stream."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        self._before, THE.current = THE.current, self._stream or THE.current

    def __exit__(self, *error) -> None:
        THE.current = self._before


class Graph:
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._recording: Recording | None = None

    def capture_begin(self, pool=None, capture_error_mode: str = "global", **options) -> None:
        assert THE.current != THE.default, "the default stream cannot be captured"
        assert not THE.captures(), "a stream is captured already"
        THE.recording = self._recording = Recording()

    def capture_end(self) -> None:
        self._recording.close()
        if not self._recording.is_valid:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def replay(self) -> None:
        assert self._recording.is_valid
        self._recording.replay(THE.used, written_by)

    def reset(self) -> None:
        self._recording = None

    def pool(self) -> tuple[int, int]:
        return POOL


class Generator(torch.Generator):
    """In the place of torch.Generator: numbers of the device are drawn on the host."""

    def __new__(cls, device: object = "cpu") -> "Generator":
        return super().__new__(cls)


POOL = (0, 1)
THE = Emulation(Stream())


class InThread(TorchDispatchMode):
    """The device in another thread: modes are those of one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return THE.__torch_dispatch__(func, types, args, kwargs)


def _synchronize(device: object = None) -> None:
    THE.wait_openly(LaunchOrder.all_moments(), "synchronize")


def _set_sync_debug_mode(mode: int | str) -> None:
    THE.debug_mode = SYNC_DEBUG_MODES.get(mode, mode)


def _allocated(device: object = None) -> int:
    return THE.memory.allocated()


def _no_change(*args, **options):
    return contextlib.nullcontext()


IN_THEIR_PLACE = {
    "_lazy_init": lambda: None, "is_available": lambda: True, "is_initialized": lambda: True,
    "device_count": lambda: 1, "current_device": lambda: 0, "set_device": lambda device: None,
    "device": _no_change, "device_of": _no_change, "manual_seed": _no_change, "manual_seed_all": _no_change,
    "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "stream": StreamContext, "synchronize": _synchronize,
    "current_stream": lambda device=None: THE.current, "default_stream": lambda device=None: THE.default,
    "set_stream": lambda stream: setattr(THE, "current", stream), "graph_pool_handle": lambda: POOL,
    "is_current_stream_capturing": lambda: THE.captures(),
    "get_sync_debug_mode": lambda: THE.debug_mode, "set_sync_debug_mode": _set_sync_debug_mode,
    "mem_get_info": lambda device=None: (CAPACITY - _allocated(), CAPACITY),
    "memory_allocated": _allocated, "max_memory_allocated": _allocated, "memory_reserved": _allocated,
    "reset_peak_memory_stats": _no_change, "empty_cache": _no_change, "set_per_process_memory_fraction": _no_change,
    "get_device_capability": lambda device=None: (CARD.major, CARD.minor),
    "get_device_name": lambda device=None: CARD.name, "get_device_properties": lambda device=None: CARD,
    "is_bf16_supported": lambda *args: True,
}  # fmt: skip


def install() -> None:
    """For the rest of this process."""
    for name, one in IN_THEIR_PLACE.items():
        assert hasattr(torch.cuda, name), name
        setattr(torch.cuda, name, one)
    torch.cuda.graphs.CUDAGraph, torch.Generator = Graph, Generator
    torch._C._host_emptyCache = lambda: None
    triton_kernels.install(THE)
    _register_device_guard()
    # torch.tensor(..., device="cuda") makes a tensor of the host, and sends it by an operation that is seen.
    torch._C._set_only_lift_cpu_tensors(True)
    read_by_python()
    # A module that moves to the device gets parameters of another class.
    compatible = torch._has_compatible_shallow_copy_type
    torch._has_compatible_shallow_copy_type = lambda one, other: (
        not isinstance(one, DeviceTensor) and not isinstance(other, DeviceTensor) and compatible(one, other)
    )
    threading.Thread.run = _with_device(threading.Thread.run)
    THE.__enter__()


def _register_device_guard() -> None:
    """torch without CUDA indexes no tensor of a device that nothing makes the current one. Here that does nothing."""
    source, built = Path(__file__).with_name("device_guard.cpp"), Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "device_guard.so")
        command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{built / 'include'}", source, f"-L{built / 'lib'}"]
        subprocess.run([*command, "-lc10", "-o", library], check=True)
        torch.ops.load_library(library)


def _with_device(run: Callable) -> Callable:
    def run_there(thread: threading.Thread) -> None:
        with InThread():
            run(thread)

    return run_there
