"""Decode steps as CUDA graphs, and none where a model does in a step what a capture does not allow.

A model's own code may wait for the device: copy from it, read a number of it, or choose by one. A captured step
launches the same kernels on the same shapes as one that is not: a graph changes how long a step takes, and no draw.
"""

import contextlib
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from data_engine.errors import first_line
from data_engine.models.memory_errors import is_out_of_memory

log = logging.getLogger(__name__)

Step = Callable[[], Tensor]
# Names the memory of a graph.
Pool = tuple[int, int]

# What torch says where the host waits.
WAIT = "called a synchronizing CUDA operation"

# Captures that could not be ended: torch's allocators go on asking these graphs whether they capture.
_never_ended: list[torch.cuda.CUDAGraph] = []


class Graph(Protocol):
    """A captured step."""

    def replay(self) -> None:
        """Run it."""


class Recorder(Protocol):
    """How a device captures."""

    def warm_up(self, once: Callable[[], None]) -> None:
        """Run it apart from the work of the device: kernels are compiled by then."""

    def rehearse(self, once: Callable[[], None]) -> None:
        """Run it again. Raises RuntimeError where the host waits for the device, which a capture would not survive."""

    def watch(self, once: Callable[[], None]) -> str | None:
        """Run it to its end. What is said where the host waits for the device; None where it does not."""

    def record(self, step: Step) -> tuple[Graph, Tensor]:
        """A step as a graph, and where its result will lie. Raises what the step raises."""


class Captures:
    """Captures the steps of a model, until a capture fails; a SamplingEngine has one of these for its life."""

    def __init__(self, recorder: Recorder | None) -> None:
        """Without a recorder, nothing is captured."""
        self._recorder = recorder
        self.why_not: str | None = None
        """why no step is captured any more"""

    @classmethod
    def on(cls, device: torch.device) -> "Captures":
        return cls(CudaRecorder() if device.type == "cuda" else None)

    def __bool__(self) -> bool:
        """Whether steps are captured."""
        return self._recorder is not None and self.why_not is None

    def capture(self, step: Step, undo: Callable[[], None]) -> tuple[Graph, Tensor] | None:
        """A step as a graph, and where its result will lie; None where it cannot be captured, and ever after.

        The step runs for warming up, and is undone.
        """

        def once() -> None:
            try:
                step()
            finally:
                undo()

        self._recorder.warm_up(once)
        return self._kept(step, lambda: self._recorder.rehearse(once))

    def run(self, step: Step, before: int) -> Tensor | None:
        """Run a step that cannot be undone, behind `before` others, and return what it drew.

        The first step warms up, and the second shows whether the host waits. None for any later one, which is not run:
        it is to be kept as a graph.
        """
        drawn: list[Tensor] = []
        if before == 0:
            self._recorder.warm_up(lambda: drawn.append(step()))
        elif before == 1:
            told = self._recorder.watch(lambda: drawn.append(step()))
            if told is not None:
                self._give_up(told)
        return drawn[0] if drawn else None

    def keep(self, step: Step) -> tuple[Graph, Tensor] | None:
        """A step as a graph, behind those of `run`; None where it cannot be captured, and ever after."""
        return self._kept(step, lambda: None)

    def _kept(self, step: Step, rehearse: Callable[[], None]) -> tuple[Graph, Tensor] | None:
        try:
            rehearse()
            return self._recorder.record(step)
        except RuntimeError as error:
            # The same step has just run: what fails now does for being captured, or for want of memory.
            if is_out_of_memory(error):
                raise
            self._give_up(_told(error))
        return None

    def _give_up(self, why: str) -> None:
        self.why_not = why
        log.warning("steps of this model are not captured in CUDA graphs, so they take longer: %s", why)


def _told(error: RuntimeError) -> str:
    """The error's first line, and where it came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{first_line(error)} ({Path(frame.filename).name}, line {frame.lineno})"


class CudaRecorder:
    """Captures on the current CUDA device, all on one stream: cuBLAS keeps memory for each that it has been on."""

    def __init__(self) -> None:
        self._side: torch.cuda.Stream | None = None

    @property
    def _stream(self) -> torch.cuda.Stream:
        """Made with the first capture, when the device is current."""
        if self._side is None:
            self._side = torch.cuda.Stream()
        return self._side

    def warm_up(self, once: Callable[[], None]) -> None:
        with _apart(self._stream):
            once()

    def rehearse(self, once: Callable[[], None]) -> None:
        with _apart(self._stream), refusing_waits():
            once()

    def watch(self, once: Callable[[], None]) -> str | None:
        with _apart(self._stream), noting_waits() as told:
            once()
        return told[0] if told else None

    def record(self, step: Step) -> tuple[Graph, Tensor]:
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        failure = None
        try:
            # The outer one, since torch.cuda.graph leaves its own stream current where the capture cannot be ended.
            here = torch.cuda.current_stream()
            with torch.cuda.stream(here), torch.cuda.graph(graph, pool=pool, stream=self._stream):
                try:
                    drawn = step()
                except RuntimeError as error:
                    failure = error
                    raise
            return graph, drawn
        except RuntimeError as error:
            # It may be left as capturing.
            self._side = None
            if error is failure:
                raise
            _give_up(graph, pool)
            # The first one says why.
            raise (failure or error) from None
        finally:
            # It holds this frame, which would keep the tensors of the step.
            failure = None


def _give_up(graph: torch.cuda.CUDAGraph, pool: Pool) -> None:
    """Close what torch leaves open of a capture that could not be ended: an open pool forbids to empty the cache."""
    _never_ended.append(graph)
    device = torch.cuda.current_device()
    # Where the capture failed before or behind that, the pool is not open.
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    torch.cuda.synchronize()


@contextlib.contextmanager
def _apart(side: torch.cuda.Stream) -> Iterator[None]:
    """On the stream that captures."""
    here = torch.cuda.current_stream()
    side.wait_stream(here)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        # Also where the step fails: what undoes it runs on that stream.
        here.wait_stream(side)


@contextlib.contextmanager
def refusing_waits() -> Iterator[None]:
    """Raise RuntimeError where the host waits for the device. No other thread of a rank uses the device."""
    with _sync_debug_mode("error"):
        yield


@contextlib.contextmanager
def noting_waits() -> Iterator[list[str]]:
    """Note where the host waits for the device, and go on: what is said, and the line. See refusing_waits."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as found, _sync_debug_mode("warn"):
        warnings.simplefilter("always")
        yield told
    for one in found:
        if WAIT in str(one.message):
            told.append(f"{WAIT} ({Path(one.filename).name}, line {one.lineno})")
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


@contextlib.contextmanager
def _sync_debug_mode(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # torch tells that it does not see every wait; what it does not see fails in the capture.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
