"""Whole runs of tiny checkpoints: their models, questions and flags, and how far two runs are apart."""

import itertools
import shutil
from pathlib import Path

import product
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from checkpoints import Checkpoint
from PIL import Image
from run_files import png, read
from safetensors.torch import load_file, save_file

SETTINGS = {
    "sample_k": 4, "rank": 2, "distance": 1000, "max_new_tokens": 8, "unit_size": 4, "threads": 1,
    "temperature": 1.0, "device": product.DEVICE, "dtype": "float32",
}  # fmt: skip


class Pair:
    """An instruct model, and a reward model whose weights are a little off, as after a short training."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self.checkpoint = checkpoint
        self.instruct, self.reward = folder / "instruct", folder / "reward"
        shutil.copytree(checkpoint.folder, self.instruct)
        shutil.copytree(checkpoint.folder, self.reward)
        change_weights(self.reward)

    def flags(self, **more: object) -> dict[str, object]:
        """Of a run with these two models."""
        paths = {"instruct_model_path": str(self.instruct), "reward_model_path": str(self.reward)}
        return SETTINGS | paths | more

    def words(self, command: str, **more: object) -> list[str]:
        """The same as a command line."""
        flags = self.flags(**more)
        words = ((f"--{name}",) if value is True else (f"--{name}", str(value)) for name, value in flags.items())
        return [command, *itertools.chain.from_iterable(words)]


def change_weights(folder: Path) -> None:
    """Add a little to every matrix."""
    file, generator = folder / "model.safetensors", torch.Generator().manual_seed(1)
    tensors = load_file(file)
    for name, value in sorted(tensors.items()):
        if value.ndim >= 2:
            tensors[name] = value + 0.02 * torch.randn(value.shape, generator=generator)
    save_file(tensors, file, {"format": "pt"})


def question(idx: str, text: str, *pictures: Image.Image) -> dict:
    """A row of a dataset; several pictures stand in the column `images`."""
    return {"idx": idx, "question": text, "images": [{"bytes": png(one), "path": None} for one in pictures]}


def write(path: Path, rows: list[dict]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def few(folder: Path, num: int = 3) -> str:
    """`num` questions about pictures of several sizes."""
    from tiny_parts import picture

    rows = [
        question(f"q{n}", f"What is it{' called' * n}?", picture(100 + 8 * n, 130 - 8 * n, seed=n)) for n in range(num)
    ]
    return write(folder / "questions.parquet", rows)


def answers_of(work_dir: Path) -> dict[tuple[str, int], list[int]]:
    """Ids of each answer by question and number."""
    return {(row["idx"], row["sample_index"]): row["token_ids"] for row in read(work_dir / "sampled_answer")}


def largest_difference(one: list[dict], other: list[dict]) -> float:
    """Of two stages' log-probs, answer by answer."""
    assert [(row["idx"], row["sample_index"]) for row in one] == [(row["idx"], row["sample_index"]) for row in other]
    pairs = zip(one, other, strict=True)
    return max((torch.tensor(a["token_logps"]) - torch.tensor(b["token_logps"])).abs().max().item() for a, b in pairs)
