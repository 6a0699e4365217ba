"""Tensors that say they are on a GPU, and whose numbers lie in host memory."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch.utils._device import _device_constructors

DEVICE = torch.device("cuda", 0)


class DeviceTensor(torch.Tensor):
    """A tensor of the device "cuda:0". Its operations are run by emulation.Emulation on `lying`, one of the host."""

    lying: Tensor

    @staticmethod
    def __new__(cls, lying: Tensor, requires_grad: bool = False) -> "DeviceTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            lying.size(),
            strides=lying.stride(),
            storage_offset=lying.storage_offset(),
            dtype=lying.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.lying = lying
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} is called where the emulated device is not active, as in another thread")

    def __repr__(self) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def data_ptr(self) -> int:
        return self.lying.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.lying.untyped_storage()

    def as_subclass(self, cls: type[Tensor]) -> Tensor:
        return (DeviceTensor if cls is Tensor else _joined(cls))(self.lying)

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, DeviceTensor) or (other.shape, other.dtype) != (self.shape, self.dtype):
            raise NotImplementedError(f"the data of {self!r} becomes {other!r}")
        self.lying = other.lying

    def __deepcopy__(self, memo):
        made = self.detach().clone()
        memo[id(self)] = made
        return made


@functools.cache
def _joined(cls: type[Tensor]) -> type[DeviceTensor]:
    """A class of tensors whose functions are its own, and whose operations are the device's."""
    return type(cls.__name__, (cls, DeviceTensor), {})


def read_by_python() -> None:
    """What Python makes of a tensor's numbers, which torch does not do for classes of tensors."""
    for name in ("tolist", "numpy"):
        setattr(Tensor, name, _read(name, getattr(Tensor, name)))
    # It keeps what it found first: functions that a context of torch.device gives a device.
    _device_constructors()
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, _made_of_numbers(getattr(torch, name)))


def _made_of_numbers(original: Callable) -> Callable:
    """torch.tensor reads tensors in a list one by one."""

    @functools.wraps(original)
    def made(data, *args, **options):
        return original(_numbers(data) if isinstance(data, list | tuple) else data, *args, **options)

    return made


def _numbers(data: object) -> object:
    if isinstance(data, list | tuple):
        return [_numbers(one) for one in data]
    return data.cpu().tolist() if isinstance(data, DeviceTensor) else data


def _read(name: str, original: Callable) -> Callable:
    def read(self: Tensor, *args, **options):
        if has_torch_function_unary(self):
            return handle_torch_function(read, (self,), self, *args, **options)
        if not isinstance(self, DeviceTensor):
            return original(self, *args, **options)
        if name == "numpy" and not options.get("force"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return getattr(self.cpu(), name)()

    read.__name__ = name
    return read
