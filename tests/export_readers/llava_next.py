"""LLaVA-NeXT's DPO, and Qwen-VL-Series-Finetune's: a list in data.json; paths are relative to the export's folder."""

import json
from pathlib import Path

from export_readers.marked_text import messages_of


def read(folder: Path) -> list[dict]:
    rows = json.loads((folder / "data.json").read_bytes().decode("ascii"))
    return [
        {
            "messages": messages_of([("user", row["prompt"])], newline=True),
            "images": [(folder / row["image"]).read_bytes()],
            "chosen": row["chosen"],
            "rejected": row["rejected"],
        }
        for row in rows
    ]
