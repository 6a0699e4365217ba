"""The device "meta" in the place of a GPU: its tensors have no values, and raise where the host asks for a number."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Raises where an operation is given a tensor of the host and one of the device, or copies between them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tensors = [one for one in _pytree.tree_leaves((args, kwargs, made)) if isinstance(one, Tensor)]
        if torch.Tag.pointwise in func.tags:
            # A single number of the host goes along with the launch, as a Python number does.
            tensors = [one for one in tensors if one.ndim or one.device.type != "cpu"]
        assert len({one.device for one in tensors}) < 2, f"{func} meets tensors of the host and of the device"
        return made


class NoLists(TorchFunctionMode):
    """Raises where a list is made a tensor of the device."""

    def __torch_function__(self, function, types, args=(), options=None):
        options = options or {}
        if function in (torch.tensor, torch.as_tensor):
            device = options.get("device")
            assert device is None or torch.device(device) != META or args[0] == [], "a list is sent without `sent`"
        return function(*args, **options)


def arrived(values: Tensor, device: torch.device) -> Tensor:
    """In the place of device.sent, by which numbers of the host get to a GPU without a wait."""
    assert values.device.type == "cpu"
    return torch.empty(values.shape, dtype=values.dtype, device=device)
