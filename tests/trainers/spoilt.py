"""What is done to an export so that its trainer must refuse it, or lose a row of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_rows(change: Callable[[list[dict]], list[dict] | None]) -> Callable[[Path], None]:
    """Rows of the only parquet file: `change` works on them in place, or gives others."""

    def spoil(folder: Path) -> None:
        (path,) = folder.rglob("*.parquet")
        table = pq.read_table(path)
        rows = table.to_pylist()
        pq.write_table(pa.Table.from_pylist(change(rows) or rows, table.schema), path)

    return spoil


def lines(change: Callable[[list[dict]], list[dict] | None]) -> Callable[[Path], None]:
    """The same of the only jsonl file."""

    def spoil(folder: Path) -> None:
        (path,) = folder.rglob("*.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in change(rows) or rows))

    return spoil


def listed(change: Callable[[list[dict]], None]) -> Callable[[Path], None]:
    """The same of the only list in a json file; `change` works on it in place."""

    def spoil(folder: Path) -> None:
        (path,) = folder.rglob("*.json")
        rows = json.loads(path.read_text())
        change(rows)
        path.write_text(json.dumps(rows))

    return spoil


def set_cell(row: dict, column: str, value: object) -> None:
    assert row[column] != value
    row[column] = value


def picture_missing(folder: Path) -> None:
    next(path for path in (folder / "images").rglob("*") if path.is_file()).unlink()


def neighbours(rows: list[dict]) -> list[dict]:
    """The two rows of a question that has an answer of either kind, side by side."""

    def question(row: dict) -> str:
        return json.dumps([row["images"], (row["conversations"])[:-1]])

    return sorted(rows, key=question)
