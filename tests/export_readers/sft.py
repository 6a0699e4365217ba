"""TRL's SFTTrainer: prompt, completion, images."""

from pathlib import Path

from export_readers.trl import asked, said, table_rows


def read(folder: Path) -> list[dict]:
    return [{**asked(row), "answer": said(row["completion"])} for row in table_rows(folder)]
