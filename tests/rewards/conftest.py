"""Runs by a rule, without any model."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from given_rule import ANSWERS, RIGHT

from data_engine.job import model_holder, worker


@pytest.fixture
def given(tmp_path, config, monkeypatch):
    """Starts a run of ANSWERS by a rule, without any model."""
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: pytest.fail("no model is needed"))
    records = [{"idx": idx, "question": "How many?", "answer": right} for idx, right in RIGHT.items()]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "questions.parquet")
    lines = [{"idx": idx, "answer": text} for idx, texts in ANSWERS.items() for text in texts]
    (tmp_path / "answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    flags = {"answers": str(tmp_path / "answers.jsonl"), "rewards": "rule", "unit_size": 2, "rank": 1}
    flags |= {"instruct_model_path": None, "reward_model_path": None}

    def start(rule: str, dataset: Path | None = None, **changes: object) -> int:
        return worker.run(config(dataset or tmp_path / "questions.parquet", **flags | {"rule": rule} | changes))

    return start
