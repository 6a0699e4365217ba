"""Low-rank adapters of peft (LoRA, arXiv:2106.09685): what they do to the weights of their base.

A weight W becomes W + scale B A, computed in fp32 and cast once, or is replaced. One weight is in hand at a time: a
family calls a `Change` where it places its weights. Every tensor of the adapter must land on a weight of its shape.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from data_engine.models.checkpoints.adapter_config import CONFIG, INSTEAD, Scales, check_settings
from data_engine.models.checkpoints.adapter_folder import adapter_files, parts
from data_engine.models.checkpoints.checkpoint import file_headers, tensors
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.checkpoints.weight_files import FLOATS, Stored, refuse_empty, some

# base_model. is peft's model, model. its tuner; behind them stands the name in the model that was trained.
_TUNER = re.compile(r"^base_model\.model\.")
# A module's two matrices; of a table of embeddings they have a name of their own, and are the other way round.
_MATRIX = re.compile(r"^(?P<module>.+)\.lora_(?P<table>embedding_)?(?P<side>[AB])(?:\.(?!weight$)[^.]+)?(?:\.weight)?$")
# How peft wraps a module that it trains whole, or keeps beside its matrices.
_WRAPPED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
_BESIDE = ".base_layer."


@dataclass(frozen=True)
class Change:
    """What an adapter does to one weight: another one in its place, scale B A added to it, or both."""

    whole: Stored | None = None
    a: Stored | None = None
    b: Stored | None = None
    scale: float = 1.0
    turned: bool = False
    """the weight lies the other way round than the product: [in, out]"""

    def __call__(self, weight: Tensor) -> Tensor:
        """The changed weight, fp32, on the same device; `weight` stays as it is."""
        weight = weight if self.whole is None else _read(self.whole, weight.device)
        if self.a is None:
            return weight
        product = _read(self.b, weight.device) @ _read(self.a, weight.device)
        return (product.T if self.turned else product).mul_(self.scale).add_(weight)


@dataclass
class _Found:
    """The tensors of an adapter that belong to one weight."""

    module: str
    whole: Stored | None = None
    sides: dict[str, Stored] = field(default_factory=dict)
    is_table: bool = False


@dataclass(frozen=True)
class Adapter:
    """An adapter whose tensors are known by their headers alone."""

    folder: Path
    base: Path
    scales: Scales
    stored: tuple[Stored, ...]

    @classmethod
    def of(cls, folder: Path) -> "Adapter | None":
        """That of a folder of links, see adapter_folder.py; None of any other folder."""
        found = parts(folder)
        if found is None:
            return None
        adapter, base = found
        stored = [one for file in adapter_files(adapter) for one in file_headers(file)]
        if not stored:
            raise ModelError(f"the adapter {adapter} holds no tensor")
        refuse_empty(stored)
        where = adapter / CONFIG
        return cls(adapter, base, Scales.of(check_settings(where), where), tuple(stored))

    def changes(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        rename: Callable[[str], str],
        tied: Collection[str] = (),
        turned: Collection[str] = (),
    ) -> dict[str, Change]:
        """By the name of a weight among `shapes`, what becomes of it.

        `rename` is from a name in the adapter's model to one of `shapes`; `tied` are weights that are one by two
        names, `turned` those that lie as [in, out]. Raises ModelError for a tensor that lands on no weight, or not on
        one of its shape, and for a matrix without the other.
        """
        found = self._by_weight(rename)
        if nowhere := [one for name, one in found.items() if name not in shapes]:
            raise ModelError(
                f"the adapter {self.folder} changes {some(one.module for one in nowhere)}, which its base "
                f"{self.base} does not have: it was trained on another model; name that one as its base"
            )
        for name, one in found.items():
            self._check(one, shapes[name])
            if name in tied:
                raise ModelError(
                    f"the adapter {self.folder} changes {one.module}, and in {self.base} that weight is both the "
                    f"embeddings and the head, of which it was trained as one; {INSTEAD}"
                )
        return {name: self._change(name, one, shapes[name], name in turned) for name, one in found.items()}

    def _by_weight(self, rename: Callable[[str], str]) -> dict[str, _Found]:
        found: dict[str, _Found] = {}
        for one in self.stored:
            if one.dtype not in FLOATS:
                raise ModelError(f"{one} is stored as {one.dtype}: expected bfloat16, float16 or float32")
            bare = _TUNER.sub("", one.name)
            matrix = _MATRIX.match(bare)
            if matrix is None and "lora_" in bare:
                raise ModelError(f"{one} is no matrix A or B of LoRA: of adapters, LoRA alone is merged; {INSTEAD}")
            module = matrix["module"] if matrix else _WRAPPED.sub("", bare)
            # A matrix belongs to the weight of its module; what was trained whole is a weight or a bias.
            place = found.setdefault(rename(f"{module}.weight" if matrix else module), _Found(module))
            if place.sides.get(matrix["side"]) if matrix else place.whole:
                raise _two_of(place.module, one)
            if matrix:
                place.sides[matrix["side"]], place.is_table = one, bool(matrix["table"])
            else:
                place.whole = one
        return found

    def _check(self, found: _Found, shape: tuple[int, ...]) -> None:
        """Raise ModelError where a matrix lacks the other one, or shapes do not fit."""
        if len(found.sides) == 1:
            [(side, one)] = found.sides.items()
            raise ModelError(f"{one} has no {'B' if side == 'A' else 'A'}: the adapter is not whole; save it again")
        # peft saves an adapter's embeddings and head with the weight that its matrices are added to.
        if found.whole is not None and found.sides and _BESIDE not in found.whole.name:
            raise _two_of(found.module, found.whole)
        if found.whole is not None and found.whole.shape != shape:
            raise self._of_another(found.whole, found.whole.shape, shape)
        for one in found.sides.values():
            if len(one.shape) != 2 or len(shape) != 2:
                raise ModelError(
                    f"{one} has shape {list(one.shape)} for a weight of shape {list(shape)}: of a convolution, or of "
                    f"experts in one tensor, LoRA is not merged here; {INSTEAD}"
                )

    def _change(self, name: str, found: _Found, shape: tuple[int, ...], turned: bool) -> Change:
        if not found.sides:
            return Change(whole=found.whole)
        a, b = found.sides["A"], found.sides["B"]
        rank, scale = self.scales.of_module((found.module, name.removesuffix(".weight")))
        if (a.shape[0], b.shape[1]) != (rank, rank):
            raise ModelError(
                f"{a} has shape {list(a.shape)}, and B {list(b.shape)}, where {CONFIG} gives them the rank {rank}: the "
                "two files are not of one adapter"
            )
        # A table of embeddings is [ids, width], and is looked up, not multiplied.
        turned |= found.is_table
        made = (a.shape[1], b.shape[0]) if turned else (b.shape[0], a.shape[1])
        if made != shape:
            raise self._of_another(a, made, shape)
        return Change(found.whole, a, b, scale, turned)

    def _of_another(self, one: Stored, made: tuple[int, ...], shape: tuple[int, ...]) -> ModelError:
        told = "it was trained on another model; name that one as its base"
        if made[1:] == shape[1:] and made[0] > shape[0]:
            told += f". Or it was trained with tokens added to its base: then {INSTEAD}"
        return ModelError(
            f"{one} is for a weight of shape {list(made)}, which has shape {list(shape)} in its base {self.base}: "
            f"{told}"
        )


def _two_of(module: str, one: Stored) -> ModelError:
    return ModelError(f"{one} belongs to {module}, as another tensor of the adapter does: remove one")


def _read(one: Stored, device: torch.device) -> Tensor:
    [(_, value)] = tensors(one.file, [one.name])
    if tuple(value.shape) != one.shape:
        raise ModelError(f"{one.file} changed while it was read: start again when it is whole")
    return value.to(device, torch.float32)
