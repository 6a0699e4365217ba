"""Checkpoints that are spoilt, and what the check and loading say of them."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import edit

from data_engine import load_model
from data_engine.config import RunConfig
from data_engine.models.check import check_models
from data_engine.models.checkpoints.json_files import ModelError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4989345432\n"
SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
TOWER = "../openai/clip-vit-large-patch14-336"


def check(folder: Path, role: str = "instruct") -> dict[str, str]:
    """The family by role."""
    found = check_models(
        RunConfig(instruct_model_path=str(folder), reward_model_path=str(folder), dataset_path="q", work_dir="w"),
        [role],
    )
    assert {one.folder for one in found.values()} == {folder.resolve()}
    return {role: one.family for role, one in found.items()}


def load(folder: Path):
    return load_model(None, str(folder), device="cpu", dtype="float32")


def told(act: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        act()
    return str(caught.value)


def assert_refused(folder: Path, *words: str) -> None:
    """By the check, and with the same sentence by loading."""
    prefix = f'--instruct_model_path "{folder}": '
    said = told(lambda: check(folder))
    assert said.startswith(prefix)
    for word in words:
        assert word in said
    assert told(lambda: load(folder)) == said.removeprefix(prefix)


def set_header(file: Path, change: Callable[[dict], object]) -> None:
    """Rewrite the header of a safetensors file, its weights as they are."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def set_weight_map(folder: Path, **files: object) -> None:
    found = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder / INDEX, weight_map=found | files)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def pad(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 4)


def first(header: dict) -> dict:
    return next(told for name, told in header.items() if name != "__metadata__")


def without_first(header: dict) -> dict:
    return {name: told for name, told in header.items() if told.get("data_offsets", [1])[0] != 0}
