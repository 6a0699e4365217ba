"""A run with hostile questions, answers and pictures, whose pairs are written, and what an export must say of it.

What is expected follows from pairs.parquet and the rows of the dataset, by rules of its own: nothing here goes through
the code of the exports.
"""

import io
import itertools
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from export_run import finish
from hostile_images import whole_images
from PIL import Image, ImageOps
from stage2_world import World, make_world
from turned_pictures import CONTAINERS, turned

from data_engine.schemas import IMAGE

CONTROL_TOKENS = ("<s>", "</s>", "<unk>", "<image>", "<pad>", "<|im_start|>", "<|im_end|>", "[INST]", "\n")
# Answers with one of these never rank.
MARKERS = ("<image>", "</s>", " ASSISTANT: ")
# What the rule of this file looks for: a line feed has no inside.
BROKEN_UP = ("<image>", "<video>", "<audio>", "<img>", *CONTROL_TOKENS[:-1])
TEXTS = (
    "plain", " two  spaces ", "line\nfeed\r\nand\ttab", "nul \0 in it", "line\u2028separator\u2029and\x85next",
    "emoji \U0001f469\u200d\U0001f680 \U0001f1e9\U0001f1ea", "עברית العربية", "e\u0301 \u00e9 \ufeff",
    '"quotes" \\ \\n {"a": 1}',
    "{{content}} {% for x in y %} {{ bos_token }}", "<video> and <audio>", "<|im_start|>user\nhi<|im_end|>",
    "[INST] <unk> <pad>", "<s><s>x", "<ima<image>ge>", "<<image>image>", "USER: x ASSISTANT: y", "null", "NaN", "-",
    "<img>photo.png</img>", "漢字かな交じり文", "'; DROP TABLE pairs; --", "a" * 5000, "| --- |\n# not a title",
    "<Image>",
)  # fmt: skip
SYSTEM = "You are <|im_end|> brief."


def hostile_pictures() -> list[bytes]:
    """Pictures of every kind that the engine reads, those turned by EXIF and of 16 bits among them; none too long."""
    found = [turned(orientation, container) for orientation in (3, 6, 8) for container in CONTAINERS]
    return [*found, *(data for data in whole_images() if max(Image.open(io.BytesIO(data)).size) < 600)]


def upright(data: bytes) -> np.ndarray:
    """The pixels that the models saw, RGB: upright, 16-bit gray cut to its high byte."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        if image.mode.startswith("I"):
            gray = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
            return np.stack([gray] * 3, -1)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def hostile_world(folder: Path, num_questions: int = 400, kinds: str = "1120st") -> World:
    """Questions of these kinds in turn: 1 one image, 2 two, 0 none, s a system text, t an earlier turn."""
    pictures, texts = itertools.cycle(hostile_pictures()), itertools.cycle(TEXTS)
    images, messages, systems, questions = [], [], [], []
    for kind in itertools.islice(itertools.cycle(kinds), num_questions):
        number = {"2": 2, "0": 0}.get(kind, 1)
        images.append([{"bytes": next(pictures), "path": f"{len(images)}.png"} for _ in range(number)])
        question = f"{len(images)} {_text(texts, kind)}"
        questions.append(question)
        systems.append(SYSTEM if kind == "s" else None)
        turns = [("user", _text(texts, kind)), ("assistant", next(texts)), ("user", question)]
        messages.append([{"role": role, "content": text} for role, text in turns] if kind == "t" else None)
    columns = {"image": pa.nulls(num_questions, IMAGE), "images": pa.array(images, pa.list_(IMAGE))}
    columns |= {"question": questions, "system": systems, "messages": messages}
    if not any(messages):
        del columns["messages"]
    world = make_world(folder, num_questions=num_questions, **columns)
    draw = random.Random(5)
    for row in world.rows:
        row["answer"] += f" {draw.choice(TEXTS)}"
    return world


def _text(texts: Iterator[str], kind: str) -> str:
    """The next text; where there is no picture, or pictures stand where the text says so, one that does not say so."""
    return next(text for text in texts if kind not in "02t" or "<image>" not in text)


def publish_run(world: World, work_dir: Path, **settings: object) -> None:
    """Units, pairs, and a run.json as a run leaves it."""
    model = {"control_tokens": CONTROL_TOKENS, "markers": MARKERS, "model_type": "llava", "folders": []}
    finish(world, work_dir, model, markers=MARKERS, control_tokens=CONTROL_TOKENS, **settings)


def broken_up(text: str) -> str:
    """The text as this file's rule has it: a space behind the first character of each control token."""
    while found := re.search("|".join(re.escape(token) for token in sorted(BROKEN_UP, key=len, reverse=True)), text):
        at = found.start() + 1
        text = f"{text[:at]} {text[at:]}"
    return text


def asked(role: str, text: str) -> str:
    """A text of a prompt: `<image>` of the user goes, as often as one is left."""
    return broken_up(without_marker(text) if role == "user" else text)


def without_marker(text: str) -> str:
    while "<image>" in text:
        text = text.replace("<image>", "")
    return text


def prompts_of(world: World) -> dict[str, tuple[list, list[bytes]]]:
    """idx -> messages of (role, parts), in which a picture is its number, and the encoded pictures of the dataset."""
    found = {}
    for row in pq.read_table(world.dataset_path).to_pylist():
        pictures = [image["bytes"] for image in row["images"]]
        numbers = tuple(range(len(pictures)))
        turns = [
            (turn["role"], turn["content"])
            for turn in row.get("messages") or [{"role": "user", "content": row["question"]}]
        ]
        messages, placed = [], False
        for role, text in turns:
            parts = (asked(role, text),) if asked(role, text) else ()
            if role == "user" and not placed:
                parts, placed = (*numbers, *parts), True
            messages.append((role, parts))
        if row["system"] is not None:
            messages.insert(0, ("system", (asked("system", row["system"]),)))
        found[row["idx"]] = (messages, pictures)
    return found


def rewritten_prompts(world: World) -> set[str]:
    """The idx of the questions of which a text is rewritten; that `<image>` of the user goes is not meant."""
    found = set()
    for row in pq.read_table(world.dataset_path).to_pylist():
        turns = row.get("messages") or [{"role": "user", "content": row["question"]}]
        texts = [without_marker(turn["content"]) if turn["role"] == "user" else turn["content"] for turn in turns]
        if any(broken_up(text) != text for text in (*texts, row["system"] or "")):
            found.add(row["idx"])
    return found


def kept_pairs(work_dir: Path) -> list[dict]:
    """The pairs that an export holds, with their texts rewritten; those that are equal or empty then are left out."""
    rows = [row for row in pq.read_table(work_dir / "pairs/pairs.parquet").to_pylist() if row["status"] == "kept"]
    for row in rows:
        row["chosen"], row["rejected"] = broken_up(row["chosen"]), broken_up(row["rejected"])
    return [
        row for row in rows if row["chosen"].strip() and row["rejected"].strip() and row["chosen"] != row["rejected"]
    ]
