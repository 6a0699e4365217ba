"""ms-swift: parquet with pictures inside; messages that end with the chosen answer, the rejected one beside them."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from export_readers.marked_text import messages_of


def read(folder: Path) -> list[dict]:
    return [
        prompt_of(row) | {"chosen": answer_of(row), "rejected": row["rejected_response"]} for row in rows_of(folder)
    ]


def rows_of(folder: Path) -> Iterator[dict]:
    for path in sorted(folder.glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()


def prompt_of(row: dict) -> dict:
    if any(image["path"] is not None for image in row["images"]):
        raise ValueError("ms-swift may open the path of a picture in place of its bytes")
    turns = [(message["role"], message["content"]) for message in row["messages"][:-1]]
    return {"messages": messages_of(turns), "images": [image["bytes"] for image in row["images"]]}


def answer_of(row: dict) -> str:
    if row["messages"][-1]["role"] != "assistant":
        raise ValueError(f"messages end with {row['messages'][-1]['role']!r}")
    return row["messages"][-1]["content"]
