"""LLaMA-Factory's KTO: as for pairs, but the last turn is the answer."""

from pathlib import Path

from export_readers.llama_factory import answer_of, prompt_of, rows_of


def read(folder: Path, newline: bool = False) -> list[dict]:
    """The answers; `newline` where a line break stands behind each picture for the model's template."""
    return [
        answered(row, folder, newline) | {"label": row["kto_tag"]}
        for row in rows_of(folder, "data_engine_kto", ranking=False)
    ]


def answered(row: dict, folder: Path, newline: bool) -> dict:
    """A prompt and its answer, the last turn of a row."""
    *asked, answer = row["messages"]
    return prompt_of({**row, "messages": asked}, folder, newline) | {"answer": answer_of(answer)}
