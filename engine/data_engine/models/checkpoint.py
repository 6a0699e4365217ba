"""Checkpoint folders: their fingerprint, and their weights, read shard by shard into a model on the meta device.

Weights are held once: a tensor is mapped from its file, cast to the run's dtype on the device, and unmapped.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data_engine.models.base import Split
from data_engine.models.registry import ModelError, read_json
from data_engine.store.file_hashes import HashFiles

# Besides the weights: configuration, tokenizer, processor and chat template. An index of shards says only which file
# holds a weight.
CONTENT = (
    "config.json", "generation_config.json", "tokenizer*", "added_tokens.json", "special_tokens_map.json", "vocab.*",
    "merges.txt", "*processor_config.json", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, safetensors if there are any. Raises ModelError naming what is missing."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            files = sorted({folder / shard for shard in read_json(index).get("weight_map", {}).values()})
            missing = [file.name for file in files if not file.is_file()]
            if missing or not files:
                raise ModelError(f"{index} names weight files that are missing: {', '.join(missing) or 'none at all'}")
            return files
        if (folder / name).is_file():
            return [folder / name]
    raise ModelError(f"{folder} has no weights: expected model.safetensors, pytorch_model.bin, or an index of shards")


def tensors(file: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The names of a file's tensors, each with a function that maps the tensor from the file."""
    if file.suffix == ".bin":
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise ModelError(f"{file} cannot be read with weights_only=True: {error}") from error
        for name in list(found):
            yield name, lambda name=name: found[name]
        return
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open is no dict)
                yield name, lambda name=name: opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}") from error


def tensor_names(folder: Path) -> set[str]:
    return {name for file in weight_files(folder) for name, _ in tensors(file)}


def tensor_shapes(folder: Path) -> dict[str, torch.Size]:
    return {name: get().shape for file in weight_files(folder) for name, get in tensors(file)}


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
    """The files of a checkpoint that shape a number: its weights, and whatever says how to read and feed them."""
    others = {file for pattern in CONTENT for file in folder.glob(pattern) if file.is_file()}
    return [*weight_files(folder), *sorted(others)]


def num_weights(folders: Sequence[Path]) -> int:
    """The number of weights in the folders of a checkpoint, whatever their dtype."""
    return sum(shape.numel() for folder in folders for shape in tensor_shapes(folder).values())


class Filler:
    """Fills a model whose parameters are on the meta device from named tensors.

    With `split`, the parameters that it divides are divided one by one as they are read, so that at most one is whole.
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, split: Split | None = None) -> None:
        self.model, self.device, self.dtype, self.split = model, device, dtype, split
        self.missing = {name for name, _ in model.named_parameters()}
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def fill(self, folder: Path, rename: Callable[[str], str | None], ignored: re.Pattern) -> None:
        """Read the weight files of `folder`; `rename` gives the parameter for a checkpoint's name.

        Raises ModelError for a tensor of a wrong shape, or that is no parameter and does not match `ignored`.
        """
        for file in weight_files(folder):
            for name, get in tensors(file):
                target = rename(name)
                if target in self._shapes:
                    self._set(target, get(), f"{name} in {file}")
                elif not ignored.search(name):
                    raise ModelError(f"unexpected weight {name} in {file}: no part of this model has it")

    def _set(self, target: str, value: Tensor, origin: str) -> None:
        if value.shape != self._shapes[target]:
            raise ModelError(
                f"weight {origin} has shape {list(value.shape)}, config.json makes it {list(self._shapes[target])}"
            )
        owner, _, leaf = target.rpartition(".")
        divided = self.split is not None and self.split.divides(target)
        if divided and not self.split.reads:
            value = torch.empty(value.shape, device=self.device, dtype=self.dtype)
        else:
            value = value.to(self.device, self.dtype, copy=True)
        parameter = self.split.divide(value) if divided else nn.Parameter(value, requires_grad=False)
        setattr(self.model.get_submodule(owner), leaf, parameter)
        self.missing.discard(target)

    def done(self, folder: Path) -> None:
        """Raises ModelError naming the weights that no file contained."""
        if self.missing:
            some = ", ".join(sorted(self.missing)[:5])
            raise ModelError(f"{folder} lacks {len(self.missing)} weights that config.json asks for: {some}")
