"""Datasets of questions on disk, as small as a test needs them, and what the engine says of them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_engine.errors import UserError
from data_engine.questions.dataset import Question, Questions, load_questions
from data_engine.schemas import IMAGE


def table(ids, idx_type=None, **columns) -> pa.Table:
    ids = pa.array(ids, idx_type)
    images = [{"bytes": b"image %d" % i, "path": f"{i}.jpg"} for i in range(len(ids))]
    columns = {
        "question": pa.array([f"question {i}" for i in range(len(ids))]),
        "image": pa.array(images, IMAGE),
    } | columns
    return pa.table({"idx": ids, **columns})


def write(path: Path, *args, row_group_size: int | None = None, **columns) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(*args, **columns), path, row_group_size=row_group_size)
    return str(path)


def write_jsonl(path: Path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def folder_of(folder: Path, *names: str) -> str:
    """A parquet file by each name, with the name as idx."""
    for name in names:
        write(folder / name, [name])
    return str(folder)


def file_of(folder: Path, name: str, data: bytes) -> str:
    """Packed where the name says so."""
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(folder / name)


def refusal(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_questions(*args, **options)
    return str(caught.value)


def only(questions: Questions) -> Question:
    (row,) = questions.rows(range(1))
    return row
