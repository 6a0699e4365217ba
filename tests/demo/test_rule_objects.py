"""The rule `objects` in the tiny world, where what is in a picture is known exactly."""

import pyarrow.parquet as pq
import pytest
from run_files import read

import data_engine.demo
from data_engine.config import RunConfig
from data_engine.demo import world
from data_engine.demo.judge import tally, truth_path, write_questions
from data_engine.job import worker

CHECKPOINT = f"{data_engine.demo.__path__[0]}/checkpoints/instruct"
NUM = 24


@pytest.mark.slow
def test_chosen_answers_name_fewer_objects_that_are_not_there(tmp_path, one_thread):
    questions = tmp_path / "questions.parquet"
    write_questions(questions, NUM, 2)
    table, truth = pq.read_table(questions), pq.read_table(truth_path(questions))
    pq.write_table(table.append_column("objects", truth["objects"]), questions)
    flags = {"instruct_model_path": CHECKPOINT, "dataset_path": str(questions), "work_dir": str(tmp_path / "work"),
             "sample_k": 6, "rank": 2, "temperature": 1.0, "max_new_tokens": 24, "threads": 1}  # fmt: skip
    assert worker.run(RunConfig(**flags, rewards="rule", rule="objects")) == 0
    there = {row["idx"]: tuple(row["objects"]) for row in truth.to_pylist()}
    # The names of all pictures are those of the world, so that nothing named is overlooked.
    assert {name for names in there.values() for name in names} == set(world.NAMES)
    answers = {(row["idx"], row["sample_index"]): row["answer"] for row in read(tmp_path / "work/sampled_answer")}
    scored = 0
    for row in read(tmp_path / "work/rule"):
        # By the world's own parser; an object that is told twice counts once.
        named = set(world.mentioned(answers[row["idx"], row["sample_index"]]))
        right = named & set(there[row["idx"]])
        assert row["score"] == (pytest.approx(len(right) / len(named)) if named else None)
        scored += bool(named)
    assert scored > NUM * 4
    pairs = read(tmp_path / "work/dataset")
    chosen, rejected = (tally((pair[side], there[pair["idx"]]) for pair in pairs) for side in ("chosen", "rejected"))
    assert len(pairs) > 10
    # Of two answers, of which neither may be without a mistake; the world also counts what is told twice, and counts.
    assert chosen.wrong_share < rejected.wrong_share / 3
