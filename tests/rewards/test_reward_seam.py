"""A source of reward is one file and one line: the one of docs/adding.md runs, resumes and pairs."""

import contributing
import pytest
from run_files import hostile_rows, read, write
from watched_run import described

from data_engine import stages
from data_engine.job import model_holder, worker


@pytest.fixture
def length(tmp_path, monkeypatch) -> None:
    assert contributing.add("A source of reward", "data_engine.stages", "SOURCES", monkeypatch, tmp_path) == "length"


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "questions.parquet", hostile_rows()[:3])


def units_of(work_dir) -> dict[str, int]:
    """Of each stage's folder, its files' times."""
    return {path: path.stat().st_mtime_ns for name in stages.known() for path in (work_dir / name).glob("*")}


def test_a_source_of_reward_is_one_file_and_one_line(length, config, questions, monkeypatch, tmp_path):
    loaded, load = [], model_holder.load_model
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: loaded.append(a) or load(*a, **b))
    # The answers are of one length, and make candidate pairs that are dropped as equal.
    assert worker.run(config(questions, work_dir=str(tmp_path / "work"), rewards="length")) == 4
    work = tmp_path / "work"
    # Only the model that samples was needed.
    assert len(loaded) == 1
    assert not (work / "reward_logps").exists()
    tokens = {(row["idx"], row["sample_index"]): len(row["token_ids"]) for row in read(work / "sampled_answer")}
    assert {(row["idx"], row["sample_index"]): row["score"] for row in read(work / "length")} == tokens
    pairs = read(work / "pairs")
    assert pairs
    for pair in pairs:
        longer, shorter = (tokens[pair["idx"], pair[f"{side}_index"]] for side in ("chosen", "rejected"))
        assert (pair["chosen_length"], pair["rejected_length"]) == (longer, shorter)
        assert pair["margin"] == longer - shorter
        assert pair["chosen_sum"] is pair["rejected_avg"] is None
        assert longer >= shorter
    shown = described(work, 0)
    assert "length" in shown
    assert "reward_logps" not in shown


def test_a_source_that_is_added_to_a_finished_run_computes_itself_alone(
    length, config, questions, monkeypatch, tmp_path
):
    work = tmp_path / "work"
    assert worker.run(config(questions, work_dir=str(work))) == 0
    before = units_of(work)
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: pytest.fail("no model is needed"))
    assert worker.run(config(questions, work_dir=str(work), rewards="length,implicit")) == 0
    after = units_of(work)
    assert {path.parent.name for path in after.keys() - before.keys()} == {"length"}
    assert before.items() <= after.items()
