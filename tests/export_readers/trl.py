"""TRL's DPOTrainer: prompt, chosen, rejected as lists of messages of parts; images as a list of bytes and path."""

import itertools
from pathlib import Path

import pyarrow.parquet as pq


def table_rows(folder: Path) -> list[dict]:
    """The rows of all files of a folder, in the order in which `datasets` would read them."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def asked(row: dict) -> dict:
    """idx, messages and images of a row."""
    messages, number = [], 0
    for message in row["prompt"]:
        parts = []
        for part in message["content"]:
            assert set(part) == {"type", "text"}
            if part["type"] == "image":
                assert part["text"] is None
                parts.append(number)
                number += 1
            else:
                assert part["type"] == "text"
                parts.append(part["text"])
        messages.append((message["role"], joined(parts)))
    images = [image["bytes"] for image in row.get("images") or []]
    # As TRL counts them.
    assert number == len(images)
    return {"idx": row["idx"], "messages": messages, "images": images}


def joined(parts: list[str | int]) -> tuple[str | int, ...]:
    """The parts with neighbouring texts as one, and without empty ones: a model sees no more of them."""
    runs = itertools.groupby(parts, key=lambda part: isinstance(part, str))
    found = [part for is_text, run in runs for part in (["".join(run)] if is_text else run)]
    return tuple(part for part in found if part != "")


def said(messages: list[dict]) -> str:
    """The text of an answer, which is one message of one part."""
    [message] = messages
    [part] = message["content"]
    assert (message["role"], part["type"]) == ("assistant", "text")
    return part["text"]


def read(folder: Path) -> list[dict]:
    return [
        {**asked(row), "chosen": said(row["chosen"]), "rejected": said(row["rejected"])} for row in table_rows(folder)
    ]
