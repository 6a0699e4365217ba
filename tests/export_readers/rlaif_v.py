"""RLAIF-V's trainer without log-probs: question, chosen, rejected, image; the picture stands before the question."""

from pathlib import Path

from export_readers.trl import joined, table_rows


def pair(row: dict) -> dict:
    """A row of either kind of file in the normal form."""
    return {
        "idx": row["idx"],
        "messages": [("user", joined([0, row["question"]]))],
        "images": [row["image"]["bytes"]],
        "chosen": row["chosen"],
        "rejected": row["rejected"],
    }


def read(folder: Path) -> list[dict]:
    assert not list(folder.glob("*logp*"))
    return [pair(row) for row in table_rows(folder)]
