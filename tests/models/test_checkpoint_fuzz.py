"""Any bytes in the place of a checkpoint's files: it is checked and loaded, or refused in a sentence."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from folders import weights

from data_engine import load_model
from data_engine.errors import UserError
from data_engine.models import check
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.native import llava_config

ROUNDS = 60
VALUES = (
    "",
    "64",
    "no",
    0,
    -1,
    1,
    3,
    10**9,
    10**30,
    0.5,
    float("nan"),
    None,
    True,
    [],
    [1],
    {},
    {"a": 1},
    "\0",
    "x" * 9999,
)


def mutated_bytes(dice: random.Random, content: bytes, limit: int) -> bytes:
    """Another content: cut, longer, or with some of its first `limit` bytes changed."""
    at = dice.randrange(min(limit, len(content)))
    some = dice.randbytes(dice.choice((1, 1, 2, 9)))
    return dice.choice(
        (
            content[:at] + some + content[at + len(some) :],
            content[:at] + dice.choice((b"0", b"9", b'"', b"}", b"-")) + content[at + 1 :],
            content[:at] + some + content[at:],
            content[:at] + content[at + len(some) :],
            content[:at],
            content + some,
            b"",
        )
    )


def mutated_json(dice: random.Random, content: bytes) -> bytes:
    """JSON with one value exchanged or taken out, however deep."""
    raw = json.loads(content)
    part, key = raw, None
    while isinstance(part, (dict, list)) and part and (key is None or dice.random() < 0.8):
        above, key = part, dice.choice(list(part)) if isinstance(part, dict) else dice.randrange(len(part))
        part = part[key]
    if dice.random() < 0.2:
        del above[key]
    else:
        above[key] = dice.choice(VALUES)
    return json.dumps(raw).encode()


def mutated(dice: random.Random, file: Path, content: bytes) -> bytes:
    if file.suffix == ".safetensors":
        return mutated_bytes(dice, content, 8 + int.from_bytes(content[:8], "little"))
    if file.suffix == ".bin":
        # The archive's directory is at the end, the pickle at the beginning.
        turned = dice.random() < 0.5
        changed = mutated_bytes(dice, content[::-1] if turned else content, 5000)
        return changed[::-1] if turned else changed
    if file.suffix == ".json" and dice.random() < 0.6:
        return mutated_json(dice, content)
    return mutated_bytes(dice, content, len(content))


def refused(act: Callable[[], object]) -> bool:
    """Whether it ends in a sentence for the user; anything else that is raised goes on."""
    try:
        act()
    except UserError:
        return True
    return False


@pytest.fixture(
    params=[
        "llava/instruct",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("llava/reward", "omnilmm/instruct")),
        "bin",
    ]
)
def folder(request, goldens, tmp_path, monkeypatch) -> Path:
    """A copy of a checkpoint, and of the CLIP tower; the model hub has nothing."""

    def fetch(path: str, revision: str | None = None) -> Path:
        raise ModelError(f"{path!r} is no local folder")

    monkeypatch.setattr(llava_config, "fetch", fetch)
    shutil.copytree(goldens / "llava/openai", tmp_path / "openai")
    name = "llava/instruct" if request.param == "bin" else request.param
    copy = Path(shutil.copytree(goldens / name, tmp_path / "model"))
    if request.param == "llava/reward":
        # The fast tokenizer, and the tower's own files.
        (copy / "tokenizer.model").unlink()
        shutil.copy(goldens / "omnilmm/instruct/tokenizer.json", copy)
    if request.param == "bin":
        torch.save(weights(copy), copy / "pytorch_model.bin")
        for file in copy.glob("model*"):
            file.unlink()
    return copy


def test_a_checkpoint_with_any_bytes_is_used_or_refused(folder, request):
    files = [file for file in folder.iterdir() if not file.name.startswith(("generation", "special"))]
    if "[bin]" in request.node.name:
        files = [folder / "pytorch_model.bin"]
    if "reward" in request.node.name:
        files += [file for file in (folder.parent / "openai").rglob("*") if file.is_file()]
    dice, outcomes = random.Random(str(folder.name)), []
    for _ in range(ROUNDS):
        file = dice.choice(sorted(files))
        content = file.read_bytes()
        file.write_bytes(mutated(dice, file, content))
        told = refused(lambda: check.check_weights(folder, check.check_folder(folder)))
        assert refused(lambda: load_model(None, str(folder), device="cpu", dtype="float32")) == told, file
        outcomes.append(told)
        file.write_bytes(content)
    # A change of one byte in a weight or a comment may be harmless, but most are seen.
    assert ROUNDS // 4 < sum(outcomes) < ROUNDS
