"""A source of reward is one file and one line: a toy one runs, resumes and pairs without another change."""

import sys

import pytest
from run_files import hostile_rows, read, write

from data_engine import schemas, stages
from data_engine.commands import status
from data_engine.job import worker
from data_engine.stages import REWARD, SAMPLING, Source, Stage

# The whole file. It rewards each answer by the number of its tokens, and runs no model.
FILE = '''
"""The longer, the better."""

import pyarrow as pa

from data_engine import schemas
from data_engine.pipeline.runner import UnitByUnit
from data_engine.rewards import Rewards
from data_engine.store.units import UnitResult


def runner(context):
    assert context.model is None
    return UnitByUnit(lambda work: count(work.inputs["sampled_answer"]))


def count(answers):
    scores = [float(len(ids)) for ids in answers["token_ids"].to_pylist()]
    columns = [answers["idx"], answers["sample_index"], pa.array(scores)]
    schema = schemas.scores(answers.schema.field("idx").type)
    return UnitResult(pa.table(columns, schema), [])


def rewards(columns, settings):
    [score] = columns["length"]
    return Rewards(sum=score, avg=score)
'''


@pytest.fixture
def length(tmp_path, monkeypatch) -> None:
    (tmp_path / "toy_length.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_length", raising=False)
    # The whole line.
    monkeypatch.setitem(stages.SOURCES, "length", Source(
        (Stage("length", REWARD, schemas.scores, "toy_length:runner", None, (SAMPLING.name,), ()),),
        "toy_length:rewards",
    ))  # fmt: skip


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "questions.parquet", hostile_rows()[:3])


def units_of(work_dir) -> dict[str, int]:
    """Of each stage's folder, its files' times."""
    return {path: path.stat().st_mtime_ns for name in stages.known() for path in (work_dir / name).glob("*")}


def test_a_source_of_reward_is_one_file_and_one_line(length, config, questions, monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "CHOSEN", ("length",))
    loaded, load = [], worker.load_model
    monkeypatch.setattr(worker, "load_model", lambda *a, **b: loaded.append(a) or load(*a, **b))
    assert worker.run(config(questions, work_dir=str(tmp_path / "work"))) == 0
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
        assert (pair["chosen_sum"], pair["rejected_sum"]) == (longer, shorter)
        assert longer >= shorter
    shown = status.describe(work, 0)
    assert "length" in shown
    assert "reward_logps" not in shown


def test_a_source_that_is_added_to_a_finished_run_computes_itself_alone(
    length, config, questions, monkeypatch, tmp_path
):
    work = tmp_path / "work"
    assert worker.run(config(questions, work_dir=str(work))) == 0
    before = units_of(work)
    monkeypatch.setattr(stages, "CHOSEN", ("length", "implicit"))
    monkeypatch.setattr(worker, "load_model", lambda *a, **b: pytest.fail("no model is needed"))
    assert worker.run(config(questions, work_dir=str(work))) == 0
    after = units_of(work)
    assert {path.parent.name for path in after.keys() - before.keys()} == {"length"}
    assert before.items() <= after.items()


def test_a_stage_that_needs_a_column_which_the_dataset_has_not_is_refused(length, config, questions, monkeypatch):
    stage = Stage("length", REWARD, schemas.scores, "toy_length:runner", None, (SAMPLING.name,), ("reference",))
    monkeypatch.setitem(stages.SOURCES, "length", Source((stage,), "toy_length:rewards"))
    monkeypatch.setattr(stages, "CHOSEN", ("length",))
    with pytest.raises(worker.UserError, match=r'length needs the column "reference".*columns: idx, question, image'):
        worker.run(config(questions))
