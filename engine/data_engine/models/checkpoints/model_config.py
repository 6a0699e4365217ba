"""From the fields of a config.json to modules without weights; whatever is wrong on the way is a ModelError."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from torch.overrides import TorchFunctionMode

from data_engine.models.checkpoints.json_files import ModelError, reason

T = TypeVar("T")
# Beyond any model: what is larger is a broken file, and would fill the memory.
MOST = 1 << 24


def check_counts(raw: dict, where: Path, names: Iterable[str], most: int = MOST) -> None:
    """Raise ModelError where one of these fields is there and no whole number from 1 to `most`."""
    for name in names:
        value = raw.get(name)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise ModelError(f"{where} has {name} {value!r}; expected a positive integer up to {most}")


def described(where: Path, make: Callable[[], T]) -> T:
    """What `make` makes of a configuration. Raises ModelError for whatever transformers or torch object to."""
    try:
        return make()
    except ModelError:
        raise
    # The libraries raise almost anything: a KeyError for an unknown activation, ZeroDivisionError, errors of their own.
    except Exception as error:
        raise ModelError(
            f"{where} does not describe a model of its model_type ({type(error).__name__}: {reason(error)})"
        ) from error


# Functions of these modules give a parameter its first values.
INITIAL = ("torch.nn.init", "transformers.initialization")


class _EmptyOnMeta(TorchFunctionMode):
    """Inside, torch.empty and randn make meta tensors unless they are told a device, and these get no first values.
    So loading draws none of the random numbers of torch, which are the caller's.

    A layer makes its weights by torch.empty, and accelerate moves each to the meta device once it is a parameter. Until
    then it would lie in memory, which glibc takes from its heap below a threshold that grows up to 32 MB. Its place is
    not given back, since smaller blocks that stay lie behind it. Large tensors that are made and freed while weights
    are read would then lie in such places whatever map_large_tensors asks for, and leave parts of them in use.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.empty, torch.randn) and kwargs.get("device") is None:
            kwargs = kwargs | {"device": "meta"}
        # They would be none, and take most of the time.
        if getattr(func, "__module__", None) in INITIAL:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def on_meta(where: Path, make: Callable[[], T]) -> T:
    """Modules whose parameters are on the meta device, and whose buffers are not. Raises ModelError as `described`.

    No parameter that a layer makes by torch.empty takes memory, not even until it is registered.
    """
    with init_empty_weights(include_buffers=False), _EmptyOnMeta():
        return described(where, make)


def check_layers(num_layers: int, stored: int, where: Path) -> None:
    """Raise ModelError for more layers than weights, before a module is made for each."""
    if num_layers > stored:
        raise ModelError(f"{where} has num_hidden_layers {num_layers}, but there are only {stored} weights")
