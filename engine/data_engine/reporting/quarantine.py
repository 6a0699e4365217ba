"""The rows that a run left out, by kind of reason, and each with its whole reason in a file; units in.

Of a row that several stages left out, the first of them is told. Answers that were left out alone are told apart.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_engine.errors import kind_of
from data_engine.store import units
from data_engine.store.atomic import replacing

NUM_EXAMPLES = 5
FILE = "logs/quarantine.jsonl"


@dataclass
class Kind:
    """Rows that one stage left out for reasons of one kind."""

    reason: str
    """the whole one of the first row"""
    rows: int = 0
    idxs: list[int | str] = field(default_factory=list)
    """of the first NUM_EXAMPLES rows"""


def kinds(work_dir: Path) -> dict[tuple[str, str], Kind]:
    """(stage, kind of reason) -> its rows, in the order of their first ones."""
    found: dict[tuple[str, str], Kind] = {}
    for row in units.left_out(work_dir):
        stage = f"{row['stage']}, answers" if "sample_index" in row else row["stage"]
        kind = found.setdefault((stage, kind_of(row["reason"])), Kind(row["reason"]))
        kind.rows += 1
        if len(kind.idxs) < NUM_EXAMPLES:
            kind.idxs.append(row["idx"])
    return found


def counts(work_dir: Path) -> Counter:
    """(stage, kind of reason) -> rows."""
    return Counter({key: kind.rows for key, kind in sorted(kinds(work_dir).items())})


def write(work_dir: Path, found: Mapping[tuple[str, str], Kind]) -> Path | None:
    """Write the file, a line a row, and return its path; None where no row was left out, and there is no file.

    `found` is what kinds gave: where there is nothing, no unit is read again.
    """
    path = work_dir / FILE
    if not found:
        path.unlink(missing_ok=True)
        return None
    with replacing(path) as beside, open(beside, "w", encoding="utf-8") as file:
        for row in units.left_out(work_dir):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
