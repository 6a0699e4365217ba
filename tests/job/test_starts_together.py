"""Two starts of one work_dir at the same time, the second of which comes at the worst moment of the first."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_files import noise, png, read, write

from data_engine import stages
from data_engine.errors import UserError
from data_engine.job import last_step, path_choice, run_file, worker
from data_engine.pipeline import pair
from data_engine.stages import RunStages
from data_engine.store import atomic, units


@pytest.fixture
def questions(tmp_path):
    photos = [noise((60, 60), spread) for spread in (20, 50, 80)]
    return write(tmp_path / "questions.parquet", [(f"q{i}", "What is it?", png(p)) for i, p in enumerate(photos)])


def test_dataset_and_pairs_are_of_one_start_where_two_pair_at_the_same_time(config, questions, tmp_path, monkeypatch):
    """The second start comes while the first one, with other settings, has published its dataset and not its pairs."""
    work, publish, go = tmp_path / "work", pair._publish, threading.Event()
    other, seconds = config(questions, rank=1), []

    def later(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(pair, "_publish", publish)
            patch.setattr(last_step.log, "info", lambda *told: go.set() if "another start" in told[0] else None)
            seconds.append(pool.submit(worker.run, other))
            seconds[0].add_done_callback(lambda _: go.set())
            assert go.wait(60)
        publish(*arguments)

    monkeypatch.setattr(pair, "_publish", later)
    monkeypatch.setattr(worker.Stop, "disarm", lambda stop: None)
    with ThreadPoolExecutor(1) as pool:
        assert worker.run(config(questions)) == 0
        assert seconds[0].result() == 0
    table = pq.read_table(work / "pairs/pairs.parquet")
    kept = {row["idx"] for row in table.to_pylist() if row["status"] == "kept"}
    assert json.loads(table.schema.metadata[b"settings"])["rank"] == 1
    assert {row["idx"] for row in read(work / "dataset")} == kept
    assert json.loads(table.schema.metadata[b"funnel"])["written"] == len(read(work / "dataset"))
    assert not list((work / "claims").iterdir())


def test_a_unit_that_another_start_sets_aside_before_the_pairing_is_computed_again(
    config, questions, tmp_path, monkeypatch
):
    require, taken = pair.require_units, []

    def without(work_dir, *arguments):
        if not taken:
            taken.append(units.unit_path(work_dir, "reward_logps", 0))
            taken[0].unlink()
        require(work_dir, *arguments)

    monkeypatch.setattr(pair, "require_units", without)
    # What a killed export has left; this start writes none.
    leftover = tmp_path / "work/.export.0a"
    leftover.mkdir(parents=True)
    assert worker.run(config(questions)) == 0
    assert not leftover.exists()
    assert taken[0].exists()
    assert read(tmp_path / "work/dataset")


def test_a_start_with_other_settings_waits_for_a_first_unit_that_is_being_published(tmp_path, monkeypatch):
    """It would take the run over between the unit's last check and its link, and both starts would be refused."""
    first = {"layout": run_file.LAYOUT, "bound": {"seed": 0}, "frozen": {}, "versions": {}, "places": {}}
    run_file.open_run(tmp_path, first)
    link, locks, go, others = atomic.os.link, atomic._locks, threading.Event(), []

    def noted(descriptor, path, kind):
        locked = locks(descriptor, path, kind)
        if not locked:
            go.set()
        return locked

    def late(source, target):
        monkeypatch.setattr(atomic.os, "link", link)
        others.append(pool.submit(run_file.open_run, tmp_path, first | {"bound": {"seed": 1}}))
        others[0].add_done_callback(lambda _: go.set())
        assert go.wait(60)
        link(source, target)

    monkeypatch.setattr(atomic, "_locks", noted)
    monkeypatch.setattr(atomic.os, "link", late)
    unit = units.UnitResult(pa.table({"idx": ["q"]}), [])
    with ThreadPoolExecutor(1) as pool:
        current = run_file.current(tmp_path, stages.SAMPLING, {"seed": 0}, {})
        units.publish_result(tmp_path, "sampled_answer", 0, unit, {}, current)
        assert "holds another run: seed was 0, now 1" in str(others[0].exception())
    assert run_file.read(tmp_path)["bound"] == {"seed": 0}


def test_a_first_unit_of_a_start_whose_frozen_figures_were_replaced_is_dropped(tmp_path):
    """The other start has another reward model, which shapes no answer; its figures would shape their last bits."""
    bound = {"seed": 0, "reward_model": "small"}
    first = {"layout": run_file.LAYOUT, "bound": bound, "frozen": {"decode_rows": 8}, "versions": {}, "places": {}}
    run_file.open_run(tmp_path, first)
    with run_file.current(tmp_path, stages.SAMPLING, bound, {"decode_rows": 8}):
        pass
    larger = {"bound": {"seed": 0, "reward_model": "large"}, "frozen": {"decode_rows": 4}}
    run_file.open_run(tmp_path, first | larger)
    with (
        pytest.raises(UserError, match="changed the run meanwhile: decode_rows was 8, now 4"),
        run_file.current(tmp_path, stages.SAMPLING, bound, {"decode_rows": 8}),
    ):
        pytest.fail("published")


def test_a_unit_of_a_work_dir_that_was_moved_away_is_dropped_and_told_as_that(tmp_path):
    work_dir = tmp_path / "work"
    first = {"layout": run_file.LAYOUT, "bound": {"seed": 0}, "frozen": {}, "versions": {}, "places": {}}
    run_file.open_run(work_dir, first)
    current = run_file.current(work_dir, stages.SAMPLING, {"seed": 0}, {})
    work_dir.rename(tmp_path / "moved")
    with pytest.raises(UserError) as refused:
        units.publish_result(work_dir, "sampled_answer", 0, units.UnitResult(pa.table({"idx": ["q"]}), []), {}, current)
    assert str(refused.value).startswith(f'"{work_dir}/run.json" is gone: the work_dir was removed or moved while')
    assert units.published(work_dir, "sampled_answer") == set()


@pytest.mark.parametrize("before", [None, "{"])
def test_ranks_that_decide_on_a_path_at_the_same_time_follow_one_decision(tmp_path, before):
    """Also where a disk has damaged the decision that was there."""
    path, ready = tmp_path / "paths/reward-0a.json", threading.Barrier(6)

    def decide(number):
        ready.wait()
        path_choice._write(path, {"why_plain": str(number)})
        return path_choice._read(path)["why_plain"]

    with ThreadPoolExecutor(6) as pool:
        for _ in range(8):
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True) if before is None else path.write_text(before)
            assert len(set(pool.map(decide, range(6)))) == 1


def test_a_decision_on_a_path_holds_for_one_model_and_one_dataset():
    def name(**bound: str) -> str:
        return path_choice._digest(SimpleNamespace(stages=RunStages(), bound=bound), "reward")

    one = name(reward_model="1", dataset="a")
    assert name(reward_model="1", dataset="a", yesno_model="3") == one
    assert len({one, name(reward_model="2", dataset="a"), name(reward_model="1", dataset="b")}) == 3
