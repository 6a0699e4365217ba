"""Judges as tiny checkpoints: a tokenizer that can say yes and no, and heads of reward models."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from data_engine.pipeline.judge import JudgeScores
from data_engine.pipeline.passes import Computed, compute_unit

# Pieces in the place of bytes that no text here has, and how they are put together.
PIECES = ("Ye", "Yes", "ĠYes", "No", "no", "Ġno")
MERGES = (("Y", "e"), ("Ye", "s"), ("Ġ", "Yes"), ("N", "o"), ("n", "o"), ("Ġ", "no"))


def saying_yes(folder: Path, to: Path, pieces: tuple[str, ...] = PIECES) -> Path:
    """A copy of a checkpoint whose tokenizer has some of PIECES as tokens, with the ids 0, 1, ... in their order."""
    shutil.copytree(folder, to)
    told = json.loads((to / "tokenizer.json").read_text())
    letters = sorted(told["model"]["vocab"], key=told["model"]["vocab"].__getitem__)
    # Of bytes that are no printable ASCII.
    unused = [letter for letter in letters if ord(letter) > 0x7F and letter not in "ĠĊ"]
    vocab = {letter: number for number, letter in enumerate(letters)}
    for number, piece in enumerate(pieces):
        vocab[piece] = vocab.pop(unused[number])
    told["model"] |= {"vocab": vocab, "merges": [list(one) for one in MERGES if "".join(one) in pieces]}
    (to / "tokenizer.json").write_text(json.dumps(told))
    return to


def ids_of(folder: Path) -> dict[str, int]:
    """The ids of the pieces."""
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return {piece: vocab[piece] for piece in PIECES if piece in vocab}


def head(width: int) -> dict[str, torch.Tensor]:
    """A value head as TRL saves it."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(1, width, generator=generator)
    return {"v_head.summary.weight": weight, "v_head.summary.bias": torch.tensor([0.25])}


def with_tensors(folder: Path, to: Path, more: dict[str, torch.Tensor], without: tuple[str, ...] = ()) -> Path:
    """A copy of a checkpoint with more weights, and without those whose names end so."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not (without and name.endswith(without))}
    assert len(kept) < len(tensors) or not without
    save_file(kept | {name: value.clone() for name, value in more.items()}, to / "model.safetensors", {"format": "pt"})
    return to


def judged(model, readings, question, sampled, check: bool = False) -> Computed:
    """What a judge makes of the answers to a question, by each of its readings."""
    return compute_unit(JudgeScores(model, readings, 64), [question], sampled, 0, check)


def scores(model, reading, question, sampled, check: bool = False) -> list[float]:
    """The scores of all answers to a question, in their order."""
    found = judged(model, {"score": reading}, question, sampled, check)
    assert found.quarantined == []
    assert [row["sample_index"] for row, _ in found.scored] == list(range(sampled.num_rows))
    return [float(score) for _, (score,) in found.scored]
