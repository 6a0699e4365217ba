"""TRL's KTOTrainer: prompt, completion, label, images."""

from pathlib import Path

from export_readers.trl import asked, said, table_rows


def read(folder: Path) -> list[dict]:
    return [{**asked(row), "answer": said(row["completion"]), "label": row["label"]} for row in table_rows(folder)]
