"""Checkpoint folders: their fingerprint, and their weights, read shard by shard into a model on the meta device.

Weights are held once: a tensor is mapped from its file, cast to the run's dtype on the device, and unmapped.
"""

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data_engine.models.base import Split
from data_engine.models.checkpoints.json_files import ModelError, reason
from data_engine.models.checkpoints.weight_files import (
    FLOATS,
    Stored,
    check_archive,
    located,
    quantised_weight,
    read_header,
    read_index,
    refuse_empty,
    weight_files,
)
from data_engine.plural import plural
from data_engine.store.absent import is_file, matching
from data_engine.store.file_hashes import HashFiles

# Besides the weights: configuration, tokenizer, processor, chat template, which InternVL's own layout has in
# conversation.py, and the head of a reward model. An index of shards says only which file holds a weight.
CONTENT = (
    "config.json", "generation_config.json", "tokenizer*", "*.model", "*.tiktoken", "added_tokens.json",
    "special_tokens_map.json", "vocab.*", "merges.txt", "value_head.*", "*processor_config.json", "chat_template*",
    "additional_chat_templates/*", "conversation.py",
    # Of a folder of links, see adapter_folder.py.
    ".adapter/adapter_config.json", ".adapter/adapter_model.*", ".adapter/non_lora_trainables.bin",
)  # fmt: skip
# Of weights that are wrong, so many are told of in full.
MOST_TOLD = 5
# torch's dtypes as safetensors spells them.
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}


def headers(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint by name, from the headers of its weight files.

    Raises ModelError for a file that is not whole, or that does not hold what the index says.
    """
    files, index = located(folder)
    found: dict[str, Stored] = {}
    for file in files:
        for one in file_headers(file):
            if one.name in found:
                raise ModelError(f"{one.name} stands in two files, {found[one.name].file} and {file}; remove one")
            found[one.name] = one
    refuse_empty(found.values())
    for name, shard in read_index(index).items() if index is not None else ():
        if name not in found or found[name].file != folder / shard:
            raise ModelError(f"{index} says that {shard} holds {name}, but it does not: download both again")
    return found


def file_headers(file: Path) -> list[Stored]:
    """The tensors of one weight file. Raises ModelError where it is not whole."""
    return read_bin_header(file) if file.suffix == ".bin" else read_header(file)


def tensors(file: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of a file, each mapped from it when its turn comes."""
    if file.suffix == ".bin":
        found = _open_bin(file)
        for name in names:
            yield name, found[name]
        return
    # The header was whole when it was checked, but another process may be writing.
    try:
        for name in names:
            # Opened anew: what was read of a mapped file counts as this process's memory until it is closed.
            with safe_open(file, framework="pt") as opened:
                yield name, opened.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {reason(error)}") from error


def _open_bin(file: Path) -> dict[str, Tensor]:
    """The tensors of a .bin, mapped. Raises ModelError where it is broken, or would have to run code to be read."""
    check_archive(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    # Whatever a broken pickle makes of the unpickler.
    except Exception as error:
        raise ModelError(
            f"{file} cannot be read with weights_only=True ({type(error).__name__}: {reason(error)}): it is broken, "
            "or holds more than tensors; where the model was made, save it again with save_pretrained, as safetensors"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds a {type(found).__name__}; expected a dictionary of tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise ModelError(
                f"{file} holds {name!r}, which is {type(value).__name__}; expected dense tensors by name, as "
                "save_pretrained writes them"
            )
    return found


def read_bin_header(file: Path) -> list[Stored]:
    """The tensors of a .bin. Raises ModelError as for any file that is broken or would run code."""
    return [
        Stored(file, name, tuple(value.shape), DTYPES.get(value.dtype, str(value.dtype)))
        for name, value in _open_bin(file).items()
    ]


def fingerprint(folders: Sequence[Path], hash_files: HashFiles) -> str:
    """In hex, of what the folders of a checkpoint hold: every byte of weights, configuration and tokenizer.

    Paths do not count, nor do files that no part of this program reads.
    """
    content = hashlib.sha256()
    for folder in folders:
        files = content_files(folder)
        for file, sha256 in zip(files, hash_files(files), strict=True):
            content.update(f"{file.relative_to(folder)} {sha256}\n".encode())
    return content.hexdigest()


def content_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that shape a number: its weights, and whatever says how to read and feed them.

    Raises ModelError where the folder cannot be listed.
    """
    try:
        others = {file for pattern in CONTENT for file in matching(folder, pattern) if is_file(file)}
    except OSError as error:
        raise ModelError(f"{folder} cannot be listed: {error.strerror}") from None
    return [*weight_files(folder), *sorted(others)]


def num_weights(folders: Sequence[Path]) -> int:
    """The number of weights in the folders of a checkpoint, whatever their dtype."""
    return sum(math.prod(one.shape) for folder in folders for one in headers(folder).values())


@dataclass(frozen=True)
class Source:
    """A folder of weights, and which parameters of the model it fills."""

    folder: Path
    stored: dict[str, Stored]
    """by headers(folder)"""
    rename: Callable[[str], str]
    """from a name in the files to that of a parameter"""
    fills: tuple[str, ...] = ("",)
    """beginnings of the parameters that this folder must hold"""


class WeightChanges(Protocol):
    """What is done to weights as they are read: an adapter, see adapter.py."""

    def changes(
        self, shapes: Mapping[str, tuple[int, ...]], rename: Callable[[str], str], tied: Collection[str] = ()
    ) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """By the name of a weight among `shapes`, from its value to another, in fp32. Raises ModelError."""


@dataclass(frozen=True)
class Blueprint:
    """A model on the meta device, and the folders that fill it. What a check and loading share."""

    modules: nn.Module
    sources: tuple[Source, ...]
    ignored: re.Pattern
    """of names, as they stand in the files or as renamed, that are known and not needed"""
    adapter: "WeightChanges | None" = None
    """merged as the weights are read; it names them as the first source does"""

    def matched(self) -> dict[Path, dict[str, str]]:
        """By file, the parameter for each stored name. Reads nothing.

        Raises ModelError for a tensor of a wrong shape or dtype, one that is no parameter and does not match
        `ignored`, and a parameter without a tensor.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in self.modules.named_parameters()}
        found: dict[str, Stored] = {}
        files: dict[Path, dict[str, str]] = {}
        problems: list[ModelError] = []
        for source in self.sources:
            for one in source.stored.values():
                target = source.rename(one.name)
                if target in shapes:
                    try:
                        _check_stored(one, shapes[target], found.setdefault(target, one))
                    except ModelError as error:
                        problems.append(error)
                    files.setdefault(one.file, {})[one.name] = target
                elif not self.ignored.search(one.name) and not self.ignored.search(target):
                    problems.append(ModelError(f"unexpected weight {one}: no part of this model has it"))
        for source in self.sources:
            missing = sorted(name for name in shapes if name not in found and name.startswith(source.fills))
            if missing:
                some = ", ".join(missing[:5])
                told = f"{source.folder} lacks {plural(len(missing), 'weight')} that config.json asks for: {some}"
                problems.append(ModelError(told))
        if problems:
            raise ModelError(_summarised(problems))
        self.changes()
        return files

    def changes(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """What the adapter does, by parameter. Raises ModelError where it does not fit these weights."""
        if self.adapter is None:
            return {}
        parameters = {name: tuple(parameter.shape) for name, parameter in self.modules.named_parameters()}
        # A weight that is known and not needed may be changed as well: the layers of a tower behind the last one used.
        stored = {source.rename(one.name): one.shape for source in self.sources for one in source.stored.values()}
        tied = () if "head.weight" in parameters else ("decoder.embed_tokens.weight", "head.weight")
        return self.adapter.changes(stored | parameters, self.sources[0].rename, tied)

    def fill(self, device: torch.device, dtype: torch.dtype, split: Split | None = None) -> None:
        """Read the weights into the modules. With `split`, the parameters that it divides are divided one by one as
        they are read, so that at most one is whole. Raises ModelError as `matched` does.
        """
        files, changes = self.matched(), self.changes()
        for file, targets in files.items():
            for name, value in tensors(file, targets):
                target = targets[name]
                owner, _, leaf = target.rpartition(".")
                module = self.modules.get_submodule(owner)
                if value.shape != getattr(module, leaf).shape:
                    raise ModelError(f"{file} changed while it was read: start again when it is whole")
                if target in changes and (split is None or split.reads or not split.divides(target)):
                    value = changes[target](value.to(device))
                setattr(module, leaf, _placed(value, target, device, dtype, split))


def _summarised(problems: Sequence[ModelError]) -> str:
    """A few of them in full, and how many there are."""
    told = "; ".join(map(str, problems[:MOST_TOLD]))
    more = len(problems) - MOST_TOLD
    return f"{told}; and {more} more weights like these" if more > 0 else told


def _check_stored(one: Stored, shape: tuple[int, ...], first: Stored) -> None:
    if first is not one:
        raise ModelError(f"{one} and {first} are the same weight by two names: remove one")
    if one.shape != shape:
        raise ModelError(f"weight {one} has shape {list(one.shape)}, config.json makes it {list(shape)}")
    if one.dtype not in FLOATS:
        raise quantised_weight(one)


def _placed(value: Tensor, target: str, device: torch.device, dtype: torch.dtype, split: Split | None) -> nn.Parameter:
    divided = split is not None and split.divides(target)
    if divided and not split.reads:
        value = torch.empty(value.shape, device=device, dtype=dtype)
    else:
        value = value.to(device, dtype, copy=True)
    return split.divide(value) if divided else nn.Parameter(value, requires_grad=False)
