"""What a person is told of a run that goes on: units of all ranks, the pace, and the time that is left."""

import json

import pyarrow as pa
import pytest

from data_engine.job.progress import Progress
from data_engine.processes.ranks import Ranks
from data_engine.schemas import sampled_answers
from data_engine.store import units
from data_engine.store.units import UnitResult


def publish(work_dir, *numbers: int, stage: str = "sampled_answer") -> None:
    for unit in numbers:
        path = units.unit_path(work_dir, stage, unit)
        path.parent.mkdir(exist_ok=True)
        path.touch()


@pytest.fixture
def result() -> UnitResult:
    """8 answers of 3 tokens, and one that was given as text."""
    row = {"sample_index": 0, "answer": "a", "finish_reason": "stop", "thought": None, "thought_tokens": None}
    rows = [{**row, "idx": f"q{at}", "token_ids": [1, 2, 3]} for at in range(8)]
    return UnitResult(sampled_answers([*rows, {**row, "idx": "given", "token_ids": None}], pa.string()), [])


def test_pace_and_time_left_count_what_this_start_has_seen_published(tmp_path, result, caplog):
    """Two of ten units were there. In a minute this rank, whose unit has 9 answers, and another one publish a third."""
    publish(tmp_path, 0, 1)
    caplog.set_level("INFO", "data_engine")
    with Progress(tmp_path, ["sampled_answer"], range(10), 10, Ranks()) as progress:
        publish(tmp_path, 2, 3)
        progress.unit_done("sampled_answer", 2, result, questions=8, seconds=30.0, peak_bytes=1_500_000_000)
        # 18 answers in 60 s, and six units at 30 s each.
        progress._started -= 60
        progress._refresh()
        assert caplog.messages[-1] == "4 of 10 units, 0.3 answers/s, 3 min left"
        publish(tmp_path, *range(10))
    # 8 units of 9 answers each.
    assert caplog.messages[-1] == "10 of 10 units, 1.2 answers/s"


@pytest.mark.parametrize(
    ("sampled", "says"),
    [((), "8 of 12 units, 0.4 answers/s, 30 s left"), ((0, 1, 2, 3), "8 of 12 units, 0.3 answers/s, 1 min left")],
)
def test_an_answer_counts_once_and_not_in_each_stage(tmp_path, result, caplog, sampled, says):
    """In a minute two of three stages are done, of 36 answers each: as much work as 24 answers make. Or one of two,
    where the first of the three was done before: 18 answers.
    """
    stages = ["sampled_answer", "instruct_logps", "reward_logps"]
    publish(tmp_path, *sampled)
    caplog.set_level("INFO", "data_engine")
    with Progress(tmp_path, stages, range(4), 12, Ranks()) as progress:
        for stage in stages[:2]:
            publish(tmp_path, *range(4), stage=stage)
        progress.unit_done("instruct_logps", 0, result, questions=8, seconds=30.0, peak_bytes=1_500_000_000)
        progress._started -= 60
        progress._refresh()
        assert caplog.messages[-1] == says


def test_units_that_turn_out_to_be_damaged_make_no_pace_below_zero(tmp_path, result, caplog):
    """Of three units, two are set aside, and one of these is computed again in a minute."""
    publish(tmp_path, 0, 1, 2)
    caplog.set_level("INFO", "data_engine")
    with Progress(tmp_path, ["sampled_answer"], range(10), 10, Ranks()) as progress:
        for unit in (1, 2):
            units.unit_path(tmp_path, "sampled_answer", unit).unlink()
        publish(tmp_path, 1)
        progress.unit_done("sampled_answer", 1, result, questions=8, seconds=30.0, peak_bytes=1_500_000_000)
        progress._started -= 60
        progress._refresh()
        assert caplog.messages[-1] == "2 of 10 units, 0.0 answers/s"


def test_a_unit_is_logged_with_its_questions_answers_and_tokens(tmp_path, result):
    with Progress(tmp_path, ["sampled_answer"], range(1), 1, Ranks()) as progress:
        progress.unit_done("sampled_answer", 0, result, questions=8, seconds=30.0, peak_bytes=1_500_000_000)
    [path] = (tmp_path / "logs").iterdir()
    line = json.loads(path.read_text())
    del line["time"]
    assert line == {
        "stage": "sampled_answer", "unit": 0, "seconds": 30.0, "questions": 8, "answers": 9, "tokens": 24,
        "peak_gb": 1.5,
    }  # fmt: skip
