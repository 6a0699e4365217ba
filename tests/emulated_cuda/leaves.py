"""The tensors among the arguments of an operation."""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from data_engine_kernels.layouts import LayerCaches, RowIndex


def tensors_of(given: object) -> list[Tensor]:
    """In order."""
    if isinstance(given, Tensor):
        return [given]
    found: list[Tensor] = []
    for part in _parts(given):
        found += tensors_of(part)
    return found


def mapped(function: Callable[[object], object], given: object) -> object:
    """The same with another in the place of each that is none of these."""
    if isinstance(given, list | tuple):
        return type(given)(mapped(function, one) for one in given)
    if isinstance(given, dict):
        return {name: mapped(function, one) for name, one in given.items()}
    if isinstance(given, LayerCaches | RowIndex):
        return type(given)(*(mapped(function, one) for one in _parts(given)))
    return function(given)


def _parts(given: object) -> list | tuple:
    if isinstance(given, list | tuple):
        return given
    if isinstance(given, dict):
        return list(given.values())
    if isinstance(given, LayerCaches | RowIndex):
        return [getattr(given, one.name) for one in dataclasses.fields(given) if one.init]
    return ()
