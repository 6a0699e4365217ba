"""The head of a reward model: one number of a hidden state, as TRL's value head and sequence classifiers save it.

Shapes: N hidden states, D width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_engine.models.checkpoints.checkpoint import file_headers, headers, tensors
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.checkpoints.weight_files import FLOATS, Stored
from data_engine.store.absent import is_file

# Beside the weights of the model, where a trainer saves the head alone; or it stands among them.
FILES = ("value_head.safetensors", "value_head.bin")
# A weight, and the bias that belongs to it: of TRL's value head, and of a sequence classifier.
HEADS = (("v_head.summary.weight", "v_head.summary.bias"), ("score.weight", None))
NAMES = tuple(name for head in HEADS for name in head if name)


@dataclass(frozen=True)
class ValueHead:
    """h w + b, in fp32 whatever the model's dtype."""

    weight_D: Tensor
    bias: Tensor

    @classmethod
    def load(cls, folder: Path, width: int, device: torch.device) -> "ValueHead":
        """Read that of a checkpoint. Raises ModelError as stored_head does."""
        found = stored_head(folder, width)
        read = {name: value for one in found.values() for name, value in tensors(one.file, [one.name])}
        read = {name: value.to(device, torch.float32).flatten() for name, value in read.items()}
        [(weight, bias)] = [head for head in HEADS if head[0] in read]
        return cls(read[weight], read[bias] if bias else torch.zeros(1, device=device))

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """fp32 [N]."""
        return hidden_ND.float() @ self.weight_D + self.bias


def stored_head(folder: Path, width: int) -> dict[str, Stored]:
    """The tensors of the one head of a checkpoint `width` wide, by name.

    Raises ModelError for a head that is not there, not whole, there twice, of another size or packed.
    """
    found = _found(folder)
    heads = [head for head in HEADS if any(name in found for name in head)]
    if not heads:
        raise ModelError(
            f"{folder} has no head of a reward model: expected v_head.summary.weight and v_head.summary.bias, or "
            f"score.weight, among its weights or in {FILES[0]}"
        )
    if len(heads) > 1:
        raise ModelError(f"{folder} has two heads, {heads[0][0]} and {heads[1][0]}: remove one")
    [names] = heads
    for name, shape in zip(names, ((1, width), (1,)), strict=True):
        if name is None:
            continue
        if name not in found:
            raise ModelError(f"{folder} has {next(iter(found))}, but no {name}, which belongs to the same head")
        _check(found[name], shape)
    return found


def _found(folder: Path) -> dict[str, Stored]:
    """The tensors of any head. Raises ModelError for one that stands in two files, and for another one in FILES."""
    found = {name: one for name, one in headers(folder).items() if name in NAMES}
    weights = {one.file for one in found.values()}
    for file in (folder / name for name in FILES):
        if not is_file(file) or file in weights:
            continue
        for one in file_headers(file):
            if one.name not in NAMES:
                raise ModelError(f"unexpected weight {one}: expected {', '.join(NAMES)}")
            if one.name in found:
                raise ModelError(f"{one.name} stands in two files, {found[one.name].file} and {file}: remove one")
            found[one.name] = one
    return found


def _check(one: Stored, shape: tuple[int, ...]) -> None:
    if one.shape != shape:
        raise ModelError(
            f"weight {one} has shape {list(one.shape)}: the head of a reward model gives one number of a hidden state, "
            f"here {list(shape)}"
        )
    if one.dtype not in FLOATS:
        raise ModelError(f"weight {one} is stored as {one.dtype}; pass one in bfloat16, float16 or float32")


def others(names: Iterable[str]) -> list[str]:
    """Of the weights that the model does not use, those that are no head."""
    return sorted(set(names) - set(NAMES))
