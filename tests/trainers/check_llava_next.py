"""Is an export what LLaVA-NeXT's DPO and Qwen-VL-Series-Finetune's read? check_llava_next.py EXPORT_FOLDER llava-next
EXPECTED_FOLDER

Without a checkout the written rules of their loaders are held. With --checkout, a clone of
github.com/LLaVA-VL/LLaVA-NeXT (df17966) or of github.com/2U1/Qwen-VL-Series-Finetune (93fef86), its own dataset class
runs as it is; models, trainers and the making of pixels, which importing them asks for, are stand-ins. PyPI has
neither; it needs torch, transformers and pillow. LLaVA-NeXT's class answers a row that it cannot use with the row
behind it and a line on stdout, so these lines are looked at.
"""

import contextlib
import importlib
import io
import json
import os
import re
import sys
import types
from pathlib import Path
from unittest import mock

import checking
from check_internvl import Finder, StandIn
from checking import PICTURE, Job, Row, Wrong
from PIL import Image

# What LLaVA-NeXT counts the words of, under a flag that its scripts set.
TEXTS = ("prompt", "answer", "chosen", "rejected")
STAND_INS = ("deepspeed", "decord", "trl", "ujson", "qwen_vl_utils", "data_processing", "llava.model",
             "llava.train.llava_trainer", "llava.mm_utils", "llava.utils", "src.params")  # fmt: skip


def seen(row: dict, root: Path) -> Row:
    """A row as both trainers take it: the picture and a line break, then the question."""
    for name in TEXTS:
        if not isinstance(row.get(name), str):
            raise Wrong(f"{name} is {row.get(name)!r}")
    if row["prompt"].count(PICTURE) != 1 or not row["prompt"].startswith(f"{PICTURE}\n"):
        raise Wrong(f"the picture does not stand before the question: {row['prompt'][:200]!r}")
    try:
        image = Image.open(root / row["image"]).convert("RGB")
    except OSError as error:
        raise Wrong(f"a picture cannot be opened: {error}") from None
    return Row([("user", row["prompt"])], {name: row[name] for name in ("chosen", "rejected")}, [image])


class Processor:
    """Takes texts and pictures as the dataset class of Qwen-VL-Series-Finetune gives them, and keeps them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: list[str], images: list, **others: object) -> dict:
        import torch

        self.texts += text
        if text[0].count("<|image_pad|>") != len(images):
            raise Wrong(f"{len(images)} pictures for {text[0]!r}")
        ids = torch.zeros(1, 4, dtype=torch.long)
        return {"input_ids": ids, "pixel_values": torch.zeros(1, 3), "image_grid_thw": torch.ones(1, 3)}

    def tokenizer(self, text: str, **others: object) -> dict:
        import torch

        return {"input_ids": torch.tensor([list(text.encode())])}


def loaded_by_qwen(path: Path, checkout: Path) -> list[Row]:
    """The rows as the dataset class of Qwen-VL-Series-Finetune gives them to its processor."""
    sys.modules["ujson"] = json
    opened: list[str] = []

    def open_picture(messages: list[dict], **others: object) -> tuple:
        [content] = messages[0]["content"]
        opened.append(content["image"])
        return [Image.open(content["image"]).convert("RGB")], None

    sys.modules["qwen_vl_utils"] = types.SimpleNamespace(process_vision_info=open_picture)
    dpo = importlib.import_module("src.dataset.dpo_dataset")
    arguments = mock.MagicMock(image_folder=str(path.parent), image_resized_width=None, image_resized_height=None)
    processor = Processor()
    data = dpo.DPODataset(str(path), processor, arguments, "Qwen2.5-VL")
    rows = []
    for number in range(len(data)):
        one = data[number]
        [text] = processor.texts[number:]
        [question] = re.fullmatch(
            r"<\|im_start\|>user\n<\|vision_start\|><\|image_pad\|><\|vision_end\|>(.*)<\|im_end\|>\n"
            r"<\|im_start\|>assistant\n", text, re.DOTALL,
        ).groups()  # fmt: skip
        answers = {
            name: bytes(one[f"{name}_input_ids"].tolist()).decode().removesuffix("<|im_end|>\n")
            for name in ("chosen", "rejected")
        }
        rows.append(Row([("user", PICTURE + question)], answers, [Image.open(opened[number])]))
    return rows


def loaded_by_llava_next(path: Path, checkout: Path) -> list[Row]:
    """The rows as LLaVA-NeXT's dataset class gives them to its collator, without another in the place of any."""
    sys.modules["data_processing"] = StandIn("data_processing")
    sys.modules["data_processing.utils"] = types.SimpleNamespace(
        load_json=lambda name: json.loads(Path(name).read_text()), load_jsonl=None
    )
    dpo = importlib.import_module("llava.train.train_dpo")
    arguments = mock.MagicMock(image_folder=str(path.parent), image_aspect_ratio="square")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), mock.patch.object(dpo, "rank0_print"):
        data = dpo.DPODataset(str(path), None, arguments)
        found = [data[number] for number in range(len(data))]
        # Under --group_by_modality_length.
        if len(data.modality_lengths) != len(found) or min(data.modality_lengths) <= 0:
            raise Wrong(f"its lengths are {data.modality_lengths}")
    if said.getvalue().strip():
        raise Wrong(f"rows were replaced: {said.getvalue()[-800:]}")
    images = [[Image.open(path.parent / row["image"])] for row in json.loads(path.read_text())]
    return [
        Row([("user", row["prompt"])], {name: row[name] for name in ("chosen", "rejected")}, own)
        for row, own in zip(found, images, strict=True)
    ]


def check(job: Job) -> dict:
    path = job.folder / "data.json"
    rows, expected = json.loads(path.read_text(encoding="utf-8")), checking.read_expected(job.expected)
    figures = {"rows": checking.require_same([seen(row, job.folder) for row in rows], expected)}
    if job.checkout is None:
        return figures
    sys.path.insert(0, str(job.checkout))
    sys.meta_path.insert(0, Finder(STAND_INS))
    # Not where the export's own relative paths would do.
    os.chdir(job.scratch)
    load = loaded_by_qwen if (job.checkout / "src").is_dir() else loaded_by_llava_next
    return figures | {"loaded": checking.require_same(load(path, job.checkout), expected)}


if __name__ == "__main__":
    checking.main(check, ["llava-next"])
