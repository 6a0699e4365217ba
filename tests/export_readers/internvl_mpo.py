"""InternVL's MPO: meta.json and lines of JSON; paths are relative to the export's folder."""

import json
from pathlib import Path

from export_readers.marked_text import PICTURE, messages_of


def read(folder: Path) -> list[dict]:
    [part] = json.loads((folder / "meta.json").read_bytes().decode("ascii")).values()
    lines = (folder / part["annotation"]).read_bytes().decode("ascii").splitlines()
    if len(lines) != part["length"]:
        raise ValueError(f"{len(lines)} lines, and the length is {part['length']}")
    return [_row(json.loads(line), folder / part["root"]) for line in lines]


def _row(row: dict, root: Path) -> dict:
    paths = row["image"] if isinstance(row["image"], list) else [row["image"]]
    question = row["question"]
    # As the trainer does.
    if PICTURE not in question and not isinstance(row["image"], list):
        question = f"{PICTURE}\n{question}"
    if question.count(PICTURE) != len(paths):
        raise ValueError(f"{len(paths)} pictures, and the question is {question!r}")
    return {
        "messages": messages_of([("user", question)], newline=True),
        "images": [(root / path).read_bytes() for path in paths],
        "chosen": row["chosen"],
        "rejected": row["rejected"],
    }
