"""ms-swift's reward models: pairs with a margin."""

from pathlib import Path

from export_readers.ms_swift import answer_of, prompt_of, rows_of


def read(folder: Path) -> list[dict]:
    return [
        prompt_of(row)
        | {"chosen": answer_of(row), "rejected": row["rejected_response"], "margin": row["margin"]}
        for row in rows_of(folder)
    ]  # fmt: skip
