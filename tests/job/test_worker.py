"""The loop of one rank: which exception ends it where two do, and a unit that is published while it is claimed.

And how many processes decode its images.
"""

import contextlib
import errno
import json
import shutil
import threading
from types import SimpleNamespace

import pytest
from run_files import noise, png, write

from data_engine.errors import UserError
from data_engine.job import worker
from data_engine.questions import image_workers, prefetch
from data_engine.store import logs, units
from data_engine.store.claims import Claims

PHOTO = png(noise((60, 40), 80))


def exit_codes(work_dir) -> list[int]:
    lines = [json.loads(line) for path in (work_dir / "logs").iterdir() for line in path.read_text().splitlines()]
    return [line["exit_code"] for line in lines if "exit_code" in line]


def test_the_worker_that_looked_at_the_first_rows_decodes_images_of_the_run(config, tmp_path, monkeypatch):
    started = []

    class Noted(image_workers._Worker):
        def __init__(self, *arguments: object) -> None:
            started.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(image_workers, "_Worker", Noted)
    questions = write(tmp_path / "questions.parquet", [(f"q{i}", "What is it?", PHOTO) for i in range(4)])
    assert worker.run(config(questions)) == 0
    assert 1 <= len(started) <= prefetch.WORKERS


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), ValueError("a bug")])
def test_a_users_mistake_is_told_although_publishing_fails_too(config, tmp_path, monkeypatch, capfd, failure):
    """Unit 0 cannot be published while the rank computes unit 1, which has a row that it may not leave out."""
    rows = [(f"q{i}", "What is it?", PHOTO if i < 4 else b"no image") for i in range(8)]
    asked = config(write(tmp_path / "questions.parquet", rows), on_bad_row="error")

    computed, hand_over = threading.Event(), worker.Worker._hand_over

    def fails(*_: object) -> None:
        # Before that, unit 0 would be free again and taken first.
        assert computed.wait(60)
        raise failure

    def noting(self, stage, unit: int, *rest: object) -> None:
        if unit == 1:
            computed.set()
        hand_over(self, stage, unit, *rest)

    monkeypatch.setattr(units, "publish_result", fails)
    monkeypatch.setattr(worker.Worker, "_hand_over", noting)
    with pytest.raises(UserError, match="row 'q4' cannot be used"):
        worker.run(asked)
    assert exit_codes(tmp_path / "work") == [2]
    assert f"could not be published either: {type(failure).__name__}: {failure}" in capfd.readouterr().err


def test_a_unit_that_was_published_between_the_look_and_the_claim_is_not_computed_again(config, tmp_path, monkeypatch):
    asked = config(write(tmp_path / "questions.parquet", [(f"q{i}", "What is it?", PHOTO) for i in range(8)]))
    worker.run(asked)
    finished = tmp_path / "finished"
    (tmp_path / "work").rename(finished)
    hold = Claims.hold

    def published_first(claims: Claims, stage: str, unit: int):
        ours, theirs = (units.unit_path(folder, stage, unit) for folder in (tmp_path / "work", finished))
        if unit == 1 and not ours.exists():
            ours.parent.mkdir(exist_ok=True)
            shutil.copy(theirs, ours)
        return hold(claims, stage, unit)

    monkeypatch.setattr(Claims, "hold", published_first)
    assert worker.run(asked) == 0
    assert [line["unit"] for line in logs.unit_lines(tmp_path / "work")] == [0, 0, 0]


def test_units_that_one_runner_computes_beside_each_other_share_its_time(monkeypatch):
    """It has both from the start, and the first result after 10 s, the other one after 15 s more."""
    submitted, seconds = [], {}

    class Runner:
        wants_more = property(lambda self: len(submitted) < 2)
        submit = submitted.append

        def poll(self):
            return [(submitted[len(seconds)], None)]

    def hand_over(self, stage, unit, result, took, claims_held, progress):
        seconds[unit] = took
        claims_held.pop(unit)

    loop = worker.Worker.__new__(worker.Worker)
    loop.stop, loop.held = SimpleNamespace(wanted=None), SimpleNamespace(runner=lambda *_: Runner())
    monkeypatch.setattr(worker.Worker, "_claim", lambda self, stages: (None, 8, contextlib.ExitStack()))
    monkeypatch.setattr(worker.Worker, "_submit", lambda self, stage, unit, runner: runner.submit(unit))
    monkeypatch.setattr(worker.Worker, "_hand_over", hand_over)
    monkeypatch.setattr(worker.time, "perf_counter", iter([0.0, 10.0, 25.0]).__next__)
    loop._compute(None, 7, contextlib.ExitStack(), None, None)
    assert seconds == {7: 10.0, 8: 15.0}


def test_a_rank_that_makes_no_pairs_says_who_does(config, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = config(write(tmp_path / "questions.parquet", [("q", "What is it?", PHOTO)]))
    assert worker.run(asked) == 0
    assert "rank 1: all units are published; rank 0 makes the pairs of them" in capfd.readouterr().err
    assert not (tmp_path / "work/pairs").exists()


def test_a_rank_that_may_start_no_more_threads_ends_with_the_code_of_a_users_mistake(config, tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    asked = config(write(tmp_path / "questions.parquet", [("q0", "What is it?", PHOTO)]))
    monkeypatch.setattr(worker, "_run", refused)
    with pytest.raises(UserError, match="ulimit -u"):
        worker.run(asked)
    assert exit_codes(tmp_path / "work") == [2]
