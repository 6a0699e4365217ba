"""Files of answers to three questions, a, b and c, which --answers may name."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from run_files import hostile_rows, write

GOOD = [{"idx": idx, "answer": answer} for idx in ("a", "b") for answer in ("A cat.", "A dog.")]
EMPTY = [{"idx": "b"}, {"idx": "b", "answer": None}, {"idx": "b", "answer": " \n\u2003", "token_ids": []}]


def three_questions(folder: Path) -> Path:
    good = hostile_rows()[0]
    return write(folder / "questions.parquet", [(name, good[1], good[2]) for name in ("a", "b", "c")])


def jsonl(tmp_path: Path, *rows: object) -> str:
    """Rows as JSON, or as they are where they are bytes."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (tmp_path / "answers.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return str(tmp_path / "answers.jsonl")


def parquet(tmp_path: Path, **columns: object) -> str:
    pq.write_table(pa.table(columns), tmp_path / "answers.parquet")
    return str(tmp_path / "answers.parquet")
