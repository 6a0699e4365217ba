"""LLaMA-Factory's SFT: as for KTO, without a label."""

from pathlib import Path

from export_readers.llama_factory import rows_of
from export_readers.llama_factory_kto import answered


def read(folder: Path, newline: bool = False) -> list[dict]:
    """The best answers; `newline` where a line break stands behind each picture for the model's template."""
    return [answered(row, folder, newline) for row in rows_of(folder, "data_engine_sft", ranking=False)]
