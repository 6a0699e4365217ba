"""LLaMA-Factory's KTO: as for pairs, but the last turn is the answer."""

from pathlib import Path

from export_readers.llama_factory import answer_of, prompt_of, rows_of


def read(folder: Path, newline: bool = False) -> list[dict]:
    """The answers; `newline` where a line break stands behind each picture for the model's template."""
    rows = []
    for row in rows_of(folder, "data_engine_kto", ranking=False):
        *asked, answer = row["messages"]
        prompt = prompt_of({**row, "messages": asked}, folder, newline)
        rows.append({**prompt, "answer": answer_of(answer), "label": row["kto_tag"]})
    return rows
