"""Checkpoint folders that a test may spoil: config.json and weights, read and replaced."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def edit(file: Path, **fields: object) -> None:
    content = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def save_as_bins(folder: Path) -> None:
    """The weights as two shards of torch's own format, with their index."""
    tensors, names = weights(folder), {}
    for file in folder.glob("model*"):
        file.unlink()
    for part, shard in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        file = f"pytorch_model-0000{part}-of-00002.bin"
        torch.save({name: tensors[name] for name in shard}, folder / file)
        names |= dict.fromkeys(shard, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


def replace_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
