"""Every answer, as the columns have it."""

from pathlib import Path

from export_readers.trl import table_rows


def read(folder: Path) -> list[dict]:
    return table_rows(folder)
