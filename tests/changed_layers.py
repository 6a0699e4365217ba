"""Layers whose bits depend on what they should not: on how many rows there are, or on where a row stands."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from data_engine.models.base import VisionLanguageModel

DOWN = "layers.0.mlp.down_proj"


@contextlib.contextmanager
def changed(model: VisionLanguageModel, change: Callable[[Tensor], Tensor], part: str = DOWN) -> Iterator[None]:
    """`change` is made, inside, to what a part of the decoder makes of prompts [1, M, D]."""

    def changes(module: torch.nn.Module, given: tuple, made: Tensor) -> Tensor:
        return change(made.clone()) if made.shape[1] > 1 else made

    hook = model.decoder.get_submodule(part).register_forward_hook(changes)
    try:
        yield
    finally:
        hook.remove()


def larger(rows: Tensor) -> Tensor:
    """The next larger numbers: each is off by its last bit."""
    return torch.nextafter(rows, torch.full_like(rows, torch.inf))


def by_number(made: Tensor) -> Tensor:
    """Bits that depend on how many rows there are."""
    return larger(made) if made.shape[1] > 200 else made


def by_place(made: Tensor) -> Tensor:
    """Bits that depend on where a row stands."""
    made[:, 200:] = larger(made[:, 200:])
    return made
