"""Shuffled rows out as JSON, a row a line: rows are kept as text while they are shuffled."""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

SCHEMA = pa.schema([("line", pa.string())])


def line(row: dict) -> dict:
    """A row of SCHEMA."""
    return {"line": json.dumps(row)}


def write_lines(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write rows of SCHEMA as a .jsonl file, in ASCII: some trainers read files in the encoding of the locale."""
    with open(path, "w", encoding="ascii", newline="\n") as file:
        for batch in batches:
            for text in batch.column("line").to_pylist():
                file.write(f"{text}\n")


def write_list(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write rows of SCHEMA as one list in a .json file, in ASCII."""
    with open(path, "w", encoding="ascii", newline="\n") as file:
        before = "[\n"
        for batch in batches:
            for text in batch.column("line").to_pylist():
                file.write(before + text)
                before = ",\n"
        file.write("\n]\n" if before != "[\n" else "[]\n")
