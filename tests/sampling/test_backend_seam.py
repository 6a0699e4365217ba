"""A sampling back end is one file and one line: the one of docs/adding.md samples the units of a run."""

import contributing
import pytest
from run_files import hostile_rows, read, write

from data_engine.job import worker
from data_engine.pipeline import sample
from data_engine.store import logs


@pytest.fixture(autouse=True)
def counting(tmp_path, monkeypatch) -> None:
    key = contributing.add("A sampling back end", "data_engine.sampling.backend", "BACKENDS", monkeypatch, tmp_path)
    monkeypatch.setattr(sample, "BACKEND", key)


def test_a_back_end_is_one_file_and_one_line(config, tmp_path, instruct):
    rows = hostile_rows()
    dataset = write(tmp_path / "questions.parquet", rows)
    assert worker.run(config(dataset, stop_after_stage=0, unit_size=2)) == 0
    [end] = instruct.eos_token_ids
    answers = read(tmp_path / "work/sampled_answer")
    usable = [row["idx"] for row in answers[::4]]
    assert 2 < len(usable) < len(rows)
    assert [(row["idx"], row["sample_index"], row["token_ids"], row["finish_reason"]) for row in answers] == [
        (idx, n, [5] * n + [end], "stop") for idx in usable for n in range(4)
    ]
    # Every unit once, though the last one has no usable row.
    done = [line["unit"] for line in logs.unit_lines(tmp_path / "work")]
    assert sorted(done) == list(range(-(-len(rows) // 2)))
