"""ms-swift's SFT: messages that end with the best answer."""

from pathlib import Path

from export_readers.ms_swift import answer_of, prompt_of, rows_of


def read(folder: Path) -> list[dict]:
    return [prompt_of(row) | {"answer": answer_of(row)} for row in rows_of(folder)]
