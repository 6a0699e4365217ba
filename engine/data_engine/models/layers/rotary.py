"""Rotary tables that transformers chooses anew in each pass by its largest position, which the host waits for.

A pass that waits cannot be captured in a CUDA graph. Within a model's context some of these tables never change.
"""

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn

# Their table depends on the largest position of the pass, so an answer's would depend on the others beside it.
BY_LARGEST_POSITION = ("dynamic", "longrope")
# `rope_type` of a module: of its table, or of that of each kind of layer.
Kind = str | dict[str, str]


def keep_constant_tables(decoder: nn.Module, longest: int) -> None:
    """Have transformers choose no table anew that changes only beyond `longest` positions, the most that a model takes.

    Source: dynamic NTK as transformers has it, whose base grows beyond max_position_embeddings.
    """
    for module in decoder.modules():
        if getattr(module, "max_seq_len_cached", 0) >= longest and hasattr(module, "rope_type"):
            module.rope_type = _with(module.rope_type, "dynamic")


def tables_by_position(decoder: nn.Module) -> list[nn.Module]:
    """The modules that have a second table, for passes that reach beyond some position."""
    return [module for module in decoder.modules() if "longrope" in _kinds(getattr(module, "rope_type", ""))]


def follow_largest(decoder: nn.Module) -> bool:
    """Whether some table of the decoder is chosen by the largest position of a pass."""
    kinds = (kind for module in decoder.modules() for kind in _kinds(getattr(module, "rope_type", "")))
    return any(kind in BY_LARGEST_POSITION for kind in kinds)


@contextlib.contextmanager
def kept(tables: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, these modules keep the tables of the prompt; no pass reaches the position from which they have others.

    Older versions of transformers read the largest position of a pass; newer ones choose on the device.
    """
    before = [table.rope_type for table in tables]
    for table in tables:
        table.rope_type = _with(table.rope_type, "longrope")
    try:
        yield
    finally:
        for table, kind in zip(tables, before, strict=True):
            table.rope_type = kind


def _kinds(kind: Kind) -> tuple[str, ...]:
    return tuple(kind.values()) if isinstance(kind, dict) else (kind,)


def _with(kind: Kind, taken: str) -> Kind:
    """`default`, which no pass changes, in the place of `taken`."""
    if isinstance(kind, dict):
        return {layers: _with(one, taken) for layers, one in kind.items()}
    return "default" if kind == taken else kind
