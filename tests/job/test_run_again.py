"""Another start on a work_dir: what it goes on with, what it refuses, and what run.json says of all starts."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from run_files import hostile_rows, noise, png, read, write

from data_engine.errors import UserError
from data_engine.job import model_holder, run_file, worker
from data_engine.store import units


def test_other_pairing_settings_recompute_stage_2_only(config, tmp_path, monkeypatch):
    photos = [noise((60, 60), spread) for spread in (20, 50, 80)]
    dataset = write(tmp_path / "questions.parquet", [(f"q{i}", "What is it?", png(p)) for i, p in enumerate(photos)])
    assert worker.run(config(dataset)) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*_*/unit-*.parquet")}
    pairs = read(tmp_path / "work/pairs")
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: pytest.fail("no model is needed for stage 2"))
    assert worker.run(config(dataset, rank=1, beta=0.2)) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*_*/unit-*.parquet")} == before
    assert len(read(tmp_path / "work/pairs")) < len(pairs)


@pytest.mark.parametrize("settings", [{"temperature": 0.9}, {"dtype": "bfloat16"}, {"unit_size": 9}])
def test_a_work_dir_of_another_configuration_is_refused_by_name(config, tmp_path, settings):
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])
    worker.run(config(dataset, stop_after_stage=0))
    [name] = settings
    with pytest.raises(UserError, match=rf"{name} was .*, now {next(iter(settings.values()))!r}"):
        worker.run(config(dataset, **settings))


def test_a_changed_model_or_dataset_is_refused_by_name(config, goldens, tmp_path):
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])
    assert worker.run(config(dataset)) == 0
    with pytest.raises(UserError, match="reward_model was"):
        worker.run(config(dataset, reward_model_path=str(goldens / "llava/instruct")))
    with pytest.raises(UserError, match="dataset was"):
        worker.run(config(write(tmp_path / "questions.parquet", hostile_rows()[5:6])))


def test_a_run_json_of_something_else_is_refused(config, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/run.json").write_text("[]")
    with pytest.raises(UserError, match=r"not a run\.json of this program"):
        worker.run(config(write(tmp_path / "questions.parquet", hostile_rows()[:1])))


def test_a_start_that_changes_nothing_writes_no_run_json(config, tmp_path):
    settings = config(write(tmp_path / "questions.parquet", hostile_rows()[:2]))
    assert worker.run(settings) == 0
    # A file that is replaced is another one.
    first = (tmp_path / "work/run.json").stat()
    assert worker.run(settings) == 0
    assert (tmp_path / "work/run.json").stat() == first


def test_a_start_while_another_creates_run_json_and_sweeps_takes_that_one(tmp_path, monkeypatch):
    """The other one's pairing comes between this one's write and its link: what this one wrote is gone by then."""
    first = {"layout": run_file.LAYOUT, "bound": {}, "frozen": {}, "versions": {}, "places": {}, "whose": "the other's"}
    link = units.os.link

    def late(source, target):
        target.write_text(json.dumps(first))
        units.sweep(tmp_path)
        link(source, target)

    monkeypatch.setattr(units.os, "link", late)
    assert run_file.open_run(tmp_path, {**first, "whose": "this one's"}) == (first, [])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_starts_that_add_to_run_json_at_the_same_time_leave_what_all_of_them_bring(tmp_path):
    first = {"layout": run_file.LAYOUT, "bound": {"seed": 0}, "frozen": {"rows": 1}, "versions": {}, "places": {}}
    run_file.open_run(tmp_path, first)
    ready = threading.Barrier(8)

    def add(number):
        described = first | {"bound": {"seed": 0, f"model {number}": "its hash"}, "frozen": {"rows": 9}}
        ready.wait()
        return run_file.open_run(tmp_path, described)[0]["frozen"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(add, range(8))) == [{"rows": 1}] * 8
    assert set(run_file.read(tmp_path)["bound"]) == {"seed", *(f"model {number}" for number in range(8))}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
