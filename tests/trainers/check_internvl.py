"""Is an export what InternVL's MPO trainer reads? check_internvl.py EXPORT_FOLDER internvl-mpo EXPECTED_FOLDER

Without a checkout the written rules of its loader are held. With --checkout, the folder internvl_chat of a clone of
github.com/OpenGVLab/InternVL (2410d1d), its own dataset class and prompt template run as they are; models, CUDA
kernels and the making of pixels, which importing them asks for, are stand-ins. PyPI has no InternVL; it needs torch,
transformers, numpy and pillow. The class answers a row that it cannot use with another row drawn at random and a line
on stdout, so these lines are looked at.
"""

import contextlib
import importlib.abc
import importlib.machinery
import io
import json
import os
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import checking
from checking import PICTURE, Job, Row, Wrong
from PIL import Image

KEYS = {"root", "annotation", "data_augment", "repeat_time", "length"}
STAND_INS = ("torchvision", "decord", "cv2", "imageio", "deepspeed", "internvl.model", "internvl.patch",
             "internvl.train.trainer_dpo", "internvl.dist_utils", "trl")  # fmt: skip


def read_rows(name: str, part: dict, folder: Path) -> list[dict]:
    """The rows of one entry of meta.json; its paths are as given, or relative to the export's folder."""
    if missing := KEYS - set(part):
        raise Wrong(f"{name} of meta.json has no {', '.join(sorted(missing))}")
    if not part["annotation"].endswith("jsonl"):
        raise Wrong(f"annotation {part['annotation']!r} must end in jsonl")
    text = (folder / part["annotation"]).read_text(encoding="utf-8")
    # By line feeds alone, as a file is read line by line.
    rows = [json.loads(line) for line in text.split("\n") if line]
    if len(rows) != part["length"]:
        raise Wrong(f"length is {part['length']}, and {part['annotation']} has {len(rows)} rows")
    return rows


def seen(row: dict, root: Path) -> Row:
    """A row as the trainer takes it: it puts the only picture before the question, unless the question has a place."""
    names = row["image"] if isinstance(row["image"], list) else [row["image"]]
    places = row["question"].count(PICTURE)
    if places != len(names) and not (places == 0 and len(names) == 1):
        raise Wrong(f"{len(names)} pictures, and {places} times {PICTURE} in the question {row['question']!r}")
    for name in ("chosen", "rejected"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise Wrong(f"{name} is {row[name]!r}")
    try:
        images = [Image.open(root / name).convert("RGB") for name in names]
    except OSError as error:
        raise Wrong(f"a picture cannot be opened: {error}") from None
    question = row["question"] if places else PICTURE + row["question"]
    return Row([("user", question)], {name: row[name] for name in ("chosen", "rejected")}, images)


class StandIn(types.ModuleType):
    """A module that has any class or function that is asked for."""

    __path__ = ()

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[:1].isupper() else mock.MagicMock(name=name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins under these names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)

    def find_spec(self, name: str, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        if any(name == stand_in or name.startswith(f"{stand_in}.") for stand_in in self._names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def load(meta: dict, checkout: Path) -> int:
    """The number of rows that the trainer's own dataset class takes, without another in the place of any."""
    # Before the stand-ins: it looks whether torchvision is there.
    import tiny_llava
    import torch

    sys.path.insert(0, str(checkout))
    sys.meta_path.insert(0, Finder(STAND_INS))
    from internvl.train import internvl_chat_mpo as mpo

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    tokenizer = tiny_llava.byte_tokenizer(
        special, pad_token="<|endoftext|>", eos_token="<|im_end|>", additional_special_tokens=special[1:]
    )
    tokenizer.add_bos_token = False
    mpo.LazySupervisedDataset.get_transform = lambda self: lambda image: torch.zeros(3, 448, 448)
    total = 0
    for name, part in meta.items():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            rows = mpo.LazySupervisedDataset(
                "internvl2_5", part, tokenizer, None, ds_name=name, num_image_token=4, is_train=part["data_augment"],
                repeat_time=part["repeat_time"],
            )  # fmt: skip
            for number in range(len(rows)):
                rows[number]
        if said.getvalue().strip():
            raise Wrong(f"{name}: rows were replaced: {said.getvalue()[-800:]}")
        total += len(rows)
    return total


def check(job: Job) -> dict:
    # Relative paths are relative to where the trainer is started, which the card says is the export's folder.
    os.chdir(job.folder)
    meta = json.loads((job.folder / "meta.json").read_text(encoding="utf-8"))
    rows = []
    for name, part in meta.items():
        rows += [seen(row, job.folder / part["root"]) for row in read_rows(name, part, job.folder)]
    figures = {"rows": checking.require_same(rows, checking.read_expected(job.expected))}
    if job.checkout is None:
        return figures
    loaded = load(meta, job.checkout)
    if loaded != figures["rows"]:
        raise Wrong(f"the trainer's loader takes {loaded} of {figures['rows']} rows")
    return figures | {"loaded": loaded}


if __name__ == "__main__":
    checking.main(check, ["internvl-mpo"])
