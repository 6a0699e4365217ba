"""What a person is told of a run that goes on: units of all ranks, the pace, and the time that is left."""

import json

import pyarrow as pa
import pytest

from data_engine.job.progress import Progress
from data_engine.processes.ranks import Ranks
from data_engine.schemas import sampled_answers
from data_engine.store import units
from data_engine.store.units import UnitResult


def publish(work_dir, *numbers: int) -> None:
    for unit in numbers:
        path = units.unit_path(work_dir, "sampled_answer", unit)
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
