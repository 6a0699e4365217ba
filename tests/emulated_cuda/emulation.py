"""A CUDA device without one: its operations run on the CPU, and what CUDA would refuse is refused.

- Tensors of the host and of the device do not meet, but where torch allows it.
- What makes the host wait is known: refused in a capture, and as torch.cuda.set_sync_debug_mode says.
- A copy that does not wait arrives when the host has waited for it, with other numbers there before; what it copies
  from must be the same until then.
- A capture computes nothing: its operations are noted, and run by a replay, on the memory that they were given then.
- Memory that was never written has no sensible numbers.
"""

import contextlib
import functools
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from emulated_cuda import device_tensor
from emulated_cuda.device_tensor import DeviceTensor
from emulated_cuda.leaves import mapped, tensors_of
from emulated_cuda.memory import CAPACITY, LaunchOrder, Memory
from emulated_cuda.recording import Recording
from emulated_cuda.substitutes import SUBSTITUTES

aten = torch.ops.aten

# What reads numbers of the device on the host.
READS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.bincount, aten._unique2,
    aten.unique_consecutive, aten.unique_dim, aten.is_nonzero, aten.repeat_interleave,
}  # fmt: skip
COPIES = {aten.copy_, aten._to_copy}
# Where torch takes a number of the host beside tensors of the device, other than in pointwise operations.
TAKES_NUMBERS = {aten.fill_, aten.fill, aten.where, aten.index_put_, aten.index_put, aten._index_put_impl_}
INDEXING = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
# Whole, since they choose by the device what they are made of.
WHOLE = {aten.scaled_dot_product_attention, aten.linear}


class Pending(NamedTuple):
    """A copy that the host has not waited for."""

    to: Tensor
    """of the host"""
    numbers: Tensor
    """those that will be there"""
    stream: int
    launch: int


class Sending(NamedTuple):
    """Memory of the host that the device may not have read yet."""

    source: Tensor
    numbers: Tensor
    stream: int
    launch: int
    where: str


class Emulation(TorchDispatchMode):
    """The device, its streams, and the host that waits for them."""

    def __init__(self, default: LaunchOrder) -> None:
        super().__init__()
        self.memory = Memory()
        self.default = self.current = default
        self.recording: Recording | None = None
        self.debug_mode = 0
        self.host: dict[int, int] = {}
        """of each stream, the last launch that the host has waited for"""
        self.pending: list[Pending] = []
        self.sending: list[Sending] = []
        self._lock = threading.RLock()
        self._pinned: dict[int, StorageWeakRef] = {}

    def captures(self) -> bool:
        return self.recording is not None and self.recording.is_open

    # The host waits.

    def wait(self, moment: dict[int, int], what: object) -> None:
        """In an operation, for the launches of a moment. Raises RuntimeError where that is not allowed."""
        self._refuse_in_capture(what)
        told = f"called a synchronizing CUDA operation ({what})"
        if self.debug_mode == 2:
            raise RuntimeError(told)
        if self.debug_mode == 1:
            warnings.warn(told, stacklevel=_frames_to_caller())
        self.wait_openly(moment, what)

    def wait_openly(self, moment: dict[int, int], what: object) -> None:
        """As synchronize does, of which torch's debug mode says nothing."""
        self._refuse_in_capture(what)
        for number, launch in moment.items():
            self.host[number] = max(self.host.get(number, 0), launch)
        for one in [one for one in self.pending if self._is_over(one)]:
            self.pending.remove(one)
            one.to.copy_(one.numbers)
        for one in [one for one in self.sending if self._is_over(one)]:
            self.sending.remove(one)
            assert torch.equal(_bytes(one.source), _bytes(one.numbers)), (
                f"memory was changed before it was copied to the device:\n{one.where}"
            )

    def _refuse_in_capture(self, what: object) -> None:
        if self.captures():
            self.recording.is_valid = False
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def _is_over(self, one: Pending | Sending) -> bool:
        return self.host.get(one.stream, 0) >= one.launch

    # Operations.

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Models are loaded by several threads.
        with self._lock:
            return self._run(func, args, dict(kwargs or {}))

    def _run(self, func, args: tuple, kwargs: dict[str, Any]):
        leaves = tensors_of((args, kwargs))
        on_device = any(isinstance(one, DeviceTensor) for one in leaves)
        asked = kwargs.get("device")
        asked = torch.device(asked) if asked is not None else None
        if not on_device and (asked is None or asked.type != "cuda"):
            return self._on_host(func, args, kwargs)
        packet = func.overloadpacket
        if packet is aten.is_pinned:
            return False
        if packet is aten._fused_sdp_choice:
            # Plain torch.
            return 0
        if packet in COPIES:
            return self._copy(func, args, kwargs, asked)
        if packet not in WHOLE and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        if not _takes_shapes(packet):
            self._check_devices(func, leaves, args)
        if packet in READS and not (packet is aten.repeat_interleave and kwargs.get("output_size") is not None):
            self.wait(self.current.moment(), func)
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
            self._require_memory(func, args, kwargs)
        kwargs.pop("pin_memory", None)
        return self.launch(SUBSTITUTES.get(func, func), args, kwargs)

    def launch(self, func: Callable, args: tuple, kwargs: dict[str, Any]):
        """Run it on the host's memory; its results are of the device."""
        given = tensors_of((args, kwargs))
        wrappers = {id(one.lying): one for one in given if isinstance(one, DeviceTensor)}
        args, kwargs = mapped(_lying, (args, kwargs))
        writes = written_by(func, args, kwargs)
        recording = self.recording if self.captures() else None
        if recording:
            for one in writes:
                recording.keep(one)
        made = func(*args, **kwargs)
        fresh = tensors_of(made)
        if getattr(func, "overloadpacket", None) in (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty):
            for one in fresh:
                spoil(one)
        if recording:
            recording.note(func, args, kwargs, fresh)
        else:
            reads = tensors_of((args, kwargs))
            self.used(reads, [*writes, *fresh], func)
        for one in fresh:
            self.memory.block(one).of_device = True
        # A view of a tensor that is none of inference mode is none either.
        views = bool(wrappers) and not any(one.is_inference() for one in wrappers.values())
        with torch.inference_mode(False) if views and _is_view(func) else contextlib.nullcontext():
            return mapped(lambda one: self._wrapped(one, wrappers), made)

    def used(self, reads: list[Tensor], writes: list[Tensor], what: object) -> None:
        self.current.after(self.host)
        self.current.launch(map(self.memory.block, reads), map(self.memory.block, writes), what)

    def _wrapped(self, one: object, wrappers: dict[int, DeviceTensor]) -> object:
        if not isinstance(one, Tensor) or isinstance(one, DeviceTensor):
            return one
        return wrappers[id(one)] if id(one) in wrappers else DeviceTensor(one)

    def _require_memory(self, func, args: tuple, kwargs: dict[str, Any]) -> None:
        shape = func(*args, **(kwargs | {"device": torch.device("meta")}))
        num_bytes = shape.numel() * shape.itemsize
        # Counting takes long.
        if num_bytes > CAPACITY // 100 and num_bytes + self.memory.allocated() > CAPACITY:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {num_bytes} bytes.")

    def _check_devices(self, func, leaves: list[Tensor], args: tuple) -> None:
        packet = func.overloadpacket
        host = [one for one in leaves if not isinstance(one, DeviceTensor)]
        if packet in INDEXING:
            places = [one for one in args[1] if one is not None]
            by_mask = any(one.dtype in (torch.bool, torch.uint8) for one in places)
            fills = packet is not aten.index and args[2].numel() == 1 and not isinstance(args[2], DeviceTensor)
            sent = [one for one in places if not isinstance(one, DeviceTensor)]
            # Places of the host are sent; how many a mask has is read, unless one number goes to all of them.
            if sent or (by_mask and not fills):
                self.wait(self.current.moment(), func)
            host = [one for one in host if all(one is not place for place in sent)]
        if torch.Tag.pointwise in func.tags or packet in TAKES_NUMBERS:
            host = [one for one in host if one.ndim]
        if host:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({func})"
            )

    # Copies between host and device.

    def _copy(self, func, args: tuple, kwargs: dict[str, Any], asked: torch.device | None):
        if func.overloadpacket is aten._to_copy:
            source, waits = args[0], not kwargs.pop("non_blocking", False)
            to_device = asked.type == "cuda" if asked is not None else isinstance(source, DeviceTensor)
            kwargs["device"] = torch.device("cpu")
            if to_device:
                if not isinstance(source, DeviceTensor):
                    self._sent(source, waits, func)
                return self.launch(aten._to_copy.default, (source,), kwargs)
            numbers = aten._to_copy(source.lying, **kwargs)
            # torch takes pinned memory for a copy that does not wait.
            to = numbers.clone() if waits else self._pin(numbers.clone())
        else:
            to, source = args[:2]
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if isinstance(to, DeviceTensor):
                if not isinstance(source, DeviceTensor):
                    self._sent(source, waits, func)
                return self.launch(func, (to, source), {})
            numbers = to.clone().copy_(source.lying)
        self.used([source.lying], [], func)
        if waits or not self.is_pinned(to):
            self.wait(self.current.moment(), func)
            return to.copy_(numbers)
        assert not self.captures(), "a captured copy writes memory of the host at each replay"
        spoil(to)
        self.pending.append(Pending(to, numbers, self.current.number, self.current.launches))
        return to

    def _sent(self, source: Tensor, waits: bool, what: object) -> None:
        """Memory of the host is copied to the device by the next launch."""
        if waits or not self.is_pinned(source):
            self.wait(self.current.moment(), what)
            return
        if self.captures():
            raise AssertionError("a captured copy reads memory of the host at each replay")
        where = "".join(traceback.format_stack(limit=12)[:-3])
        self.sending.append(Sending(source, source.clone(), self.current.number, self.current.launches + 1, where))

    def is_pinned(self, one: Tensor) -> bool:
        known = self._pinned.get(one.untyped_storage()._cdata)
        return known is not None and not known.expired()

    def _pin(self, one: Tensor) -> Tensor:
        self._pinned[one.untyped_storage()._cdata] = StorageWeakRef(one.untyped_storage())
        return one

    def _on_host(self, func, args: tuple, kwargs: dict[str, Any]):
        packet = func.overloadpacket
        if packet is aten.is_pinned:
            return self.is_pinned(args[0])
        if packet in (aten._pin_memory, aten.pin_memory):
            return args[0] if self.is_pinned(args[0]) else self._pin(args[0].clone())
        if kwargs.pop("pin_memory", None):
            return self._pin(func(*args, **kwargs))
        return func(*args, **kwargs)


def written_by(func: Callable, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes, by its schema."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return func.writes(args, kwargs) if hasattr(func, "writes") else []
    found = []
    for number, name in _written_arguments(func):
        found += tensors_of(args[number] if number < len(args) else kwargs.get(name))
    return found


@functools.cache
def _written_arguments(func) -> list[tuple[int, str]]:
    return [
        (number, one.name)
        for number, one in enumerate(func._schema.arguments)
        if one.alias_info is not None and one.alias_info.is_write
    ]


@functools.cache
def _takes_shapes(packet) -> bool:
    """empty_like and new_zeros, which may be asked for a tensor of another device."""
    name = str(packet).removeprefix("aten.")
    return name.endswith("_like") or name.startswith("new_")


@functools.cache
def _is_composite(func) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@functools.cache
def _is_view(func: Callable) -> bool:
    schema = getattr(func, "_schema", None)
    return schema is not None and any(
        one.alias_info is not None and not one.alias_info.is_write for one in schema.returns
    )


def _lying(one: object) -> object:
    return one.lying if isinstance(one, DeviceTensor) else one


def spoil(one: Tensor) -> None:
    """Numbers as they may lie in memory that was never written: NaN, or -1."""
    if one.is_floating_point() or one.is_complex():
        one.fill_(torch.nan)
    elif one.dtype == torch.bool:
        one.fill_(True)
    elif one.dtype == torch.uint8:
        one.fill_(255)
    else:
        one.fill_(-1)


def _bytes(one: Tensor) -> Tensor:
    return one.reshape(-1).contiguous().view(torch.uint8)


def _frames_to_caller() -> int:
    """How many frames up neither torch nor the emulation is."""
    inner = str(Path(torch.__file__).parent), __file__, device_tensor.__file__, "<"
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_stack(sys._getframe(1)))
    return next(number for number, file in enumerate(files, 1) if not file.startswith(inner))
