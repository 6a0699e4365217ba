"""Which units a rank takes next: each folder is listed a few times, however many units there are."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from data_engine.config import RunConfig
from data_engine.job import free_units, progress, worker
from data_engine.job.free_units import FreeUnits
from data_engine.stages import RunStages
from data_engine.store import units

SAMPLED, RULE = RunStages.of({"rewards": "rule", "rule": "contains"}).by_name.values()


def publish(work_dir: Path, stage: str, *numbers: int) -> None:
    for unit in numbers:
        path = units.unit_path(work_dir, stage, unit)
        path.parent.mkdir(exist_ok=True)
        path.touch()


def found(free: FreeUnits, *stages) -> list[tuple[str, int]]:
    return [(stage.name, unit) for stage, unit in free.of(stages)]


@pytest.fixture
def clock(monkeypatch):
    """Seconds of the monotonic clock, which stands still until a test sets it."""
    now = [100.0]
    monkeypatch.setattr(free_units.time, "monotonic", lambda: now[0])
    return now


def write_job(folder: Path, num_questions: int) -> RunConfig:
    """A run without a model that has a unit for each question."""
    asked = [{"idx": f"q{number}", "question": "Is it red?", "answer": "yes"} for number in range(num_questions)]
    given = [{"idx": row["idx"], "answer": text} for row in asked for text in ("yes", "no")]
    for name, rows in (("questions", asked), ("answers", given)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rules.py").write_text("def score(row, answers):\n    return [len(answer) for answer in answers]\n")
    return RunConfig(
        dataset_path=str(folder / "questions.jsonl"), answers=str(folder / "answers.jsonl"), rewards="rule",
        rule=f"{folder / 'rules.py'}:score", rank=1, unit_size=1, stop_after_stage=1, work_dir=str(folder / "work"),
    )  # fmt: skip


def test_a_further_unit_does_not_list_the_folders_once_more(tmp_path, monkeypatch):
    """Else the time of a run grows with the square of its units. Nothing is listed for its age, or to be shown.

    A few times more are left free: how often a rank looks at the end hangs on when the last unit is written.
    """
    monkeypatch.setattr(free_units, "LOOK_AGAIN_S", 1000.0)
    monkeypatch.setattr(progress, "FIRST_LINE_S", 1000.0)
    listed, listdir = Counter(), os.listdir

    def counting(path: object = ".") -> list[str]:
        listed[Path(path).name] += 1
        return listdir(path)

    times = []
    for num_units in (10, 40):
        folder = tmp_path / str(num_units)
        folder.mkdir()
        config = write_job(folder, num_units)
        listed.clear()
        with monkeypatch.context() as patched:
            patched.setattr(os, "listdir", counting)
            assert worker.run(config) == 0
        assert [len(units.published(folder / "work", stage.name)) for stage in (SAMPLED, RULE)] == [num_units] * 2
        times.append(listed[SAMPLED.name])
    assert 0 < times[1] < times[0] + 10


def test_a_call_goes_on_where_the_last_one_stopped_and_looks_again_at_the_end(tmp_path, clock):
    free = FreeUnits(tmp_path, range(3))
    first = free.of([SAMPLED])
    assert next(first) == (SAMPLED, 0)
    first.close()
    # The unit 0 was claimed by another rank, say: it comes again only once the look is at its end.
    assert found(free, SAMPLED) == [(SAMPLED.name, unit) for unit in (1, 2, 0, 1, 2)]


def test_a_unit_that_another_rank_has_published_since_the_look_is_passed_over(tmp_path, clock):
    free = FreeUnits(tmp_path, range(4))
    first = free.of([SAMPLED])
    assert next(first) == (SAMPLED, 0)
    publish(tmp_path, SAMPLED.name, 0, 1, 3)
    first.close()
    assert found(free, SAMPLED) == [(SAMPLED.name, 2), (SAMPLED.name, 2)]


def test_a_further_stage_is_begun_by_a_new_look(tmp_path, clock):
    """Else its model would be loaded for the units that were workable then, and once more for the others."""
    publish(tmp_path, SAMPLED.name, 0)
    free = FreeUnits(tmp_path, range(2))
    assert next(free.of([SAMPLED, RULE])) == (SAMPLED, 1)
    publish(tmp_path, SAMPLED.name, 1)
    assert found(free, SAMPLED, RULE) == [(RULE.name, 0), (RULE.name, 1)]


def test_a_look_that_is_five_seconds_old_is_not_gone_on_with(tmp_path, clock):
    """A unit of an earlier stage that was set aside, or whose rank has died, comes before those of later ones then."""
    publish(tmp_path, SAMPLED.name, 0, 1, 2)
    free = FreeUnits(tmp_path, range(3))
    first = free.of([SAMPLED, RULE])
    assert next(first) == (RULE, 0)
    units.unit_path(tmp_path, SAMPLED.name, 0).unlink()
    first.close()
    clock[0] += 4.9
    assert next(free.of([SAMPLED, RULE])) == (RULE, 1)
    clock[0] += 0.1
    assert found(free, SAMPLED, RULE) == [(SAMPLED.name, 0), (RULE.name, 1), (RULE.name, 2)]


def test_units_that_wait_for_a_stage_of_another_start_are_not_left(tmp_path):
    free = FreeUnits(tmp_path, range(2))
    assert not free.are_left([RULE])
    assert free.are_left([SAMPLED, RULE])
    publish(tmp_path, SAMPLED.name, 0, 1)
    assert free.are_left([RULE])
    publish(tmp_path, RULE.name, 0, 1)
    assert not free.are_left([SAMPLED, RULE])
