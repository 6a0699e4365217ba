"""LLaMA-Factory: dataset_info.json, parquet, and pictures by paths relative to the folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from export_readers.marked_text import messages_of

ROLES = {"human": "user", "gpt": "assistant"}


def read(folder: Path, newline: bool = False) -> list[dict]:
    """The pairs; `newline` where a line break stands behind each picture for the model's template."""
    return [
        {**prompt_of(row, folder, newline), **{side: answer_of(row[side]) for side in ("chosen", "rejected")}}
        for row in rows_of(folder, "data_engine_dpo", ranking=True)
    ]


def rows_of(folder: Path, name: str, ranking: bool) -> Iterator[dict]:
    """The rows of one dataset, by the names that LLaMA-Factory has for columns."""
    info = json.loads((folder / "dataset_info.json").read_bytes().decode("ascii"))
    if set(info) != {name} or info[name]["formatting"] != "sharegpt" or info[name].get("ranking", False) != ranking:
        raise ValueError(f"dataset_info.json is {info}")
    tags = info[name]["tags"]
    named = (tags["role_tag"], tags["content_tag"], tags["user_tag"], tags["assistant_tag"])
    if len(tags) != 7 or named != ("from", "value", "human", "gpt"):
        raise ValueError(f"tags are {tags}")
    for row in pq.read_table(folder / info[name]["file_name"]).to_pylist():
        yield {ours: row[theirs] for ours, theirs in info[name]["columns"].items()}


def prompt_of(row: dict, folder: Path, newline: bool) -> dict:
    turns = [(ROLES[turn["from"]], turn["value"]) for turn in row["messages"]]
    if row["system"]:
        turns.insert(0, ("system", row["system"]))
    return {
        "messages": messages_of(turns, newline),
        "images": [(folder / path).read_bytes() for path in row["images"]],
    }


def answer_of(turn: dict) -> str:
    if turn["from"] != "gpt":
        raise ValueError(f"an answer of {turn['from']!r}")
    return turn["value"]
