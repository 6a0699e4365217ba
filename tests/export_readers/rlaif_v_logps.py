"""RLAIF-V's trainer with log-probs, by the rules of RLAIFVDataset and DataCollatorForDPODataset (83d917b)."""

import json
import re
from pathlib import Path

from export_readers.rlaif_v import pair
from export_readers.trl import table_rows

COLUMNS = [
    "ds_name", "image", "question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "image_path", "logps"
]  # fmt: skip
NAMES = ("sum", "mean", "tokens")


def _refuse(constant: str) -> None:
    raise AssertionError(f"a log-prob is {constant}")


def read(folder: Path) -> list[dict]:
    """The pairs; "chosen_logps" and "rejected_logps" have the sum, the mean, and the list that is cut to the input."""
    files = sorted(path.name for path in folder.glob("*.parquet"))
    found = []
    for number, name in enumerate(files):
        assert re.fullmatch(rf"RLAIF-V-Dataset-withlogp_{number:03d}-\d+\.parquet", name), name
    for row in table_rows(folder):
        assert list(row) == COLUMNS
        assert json.loads(row["origin_split"]) == {}
        told = json.loads(row["logps"], parse_constant=_refuse)["logps"]
        sides = {"chosen_logps": dict(zip(NAMES, told[:3], strict=True))}
        sides["rejected_logps"] = dict(zip(NAMES, told[3:], strict=True))
        found.append({**pair(row), **sides})
    assert sum(int(name.split("-")[-1].removesuffix(".parquet")) for name in files) == len(found)
    return found
