"""A run whose --limit grows: published units stay, the last one of the smaller limit is computed again."""

import hashlib
import json

import pyarrow.parquet as pq
import pytest
from bound_run import NUM_QUESTIONS, STAGES

from data_engine.commands import main
from data_engine.errors import IncompleteError
from data_engine.job import last_step, model_holder, published, run_file, worker
from data_engine.store import units


@pytest.fixture
def begun(run, monkeypatch):
    """A finished run of the first three of five questions, in units of two: the second unit has one."""
    return begin(run, 3)


def begin(run, limit: int):
    for path in [*run.work.glob("*_*/unit-*.parquet"), *run.work.glob("pairs/*"), *run.work.glob("dataset/*")]:
        path.unlink()
    assert run.start(limit=limit) == 0
    return run


def contents(work_dir) -> dict[str, str]:
    """The bytes of units, pairs and dataset."""
    return {
        str(path.relative_to(work_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in (*STAGES, "pairs", "dataset")
        for path in sorted((work_dir / folder).glob("*.parquet"))
    }


def test_a_larger_limit_computes_what_is_new_and_the_unit_that_the_smaller_one_cut_short(begun, finished, capsys):
    kept = {name: time for name, time in begun.times().items() if name.endswith("/0")}
    # By one start: no pairing finds units of the answers that were there before.
    assert begun.computed_again(limit=4, stop_after_stage=1) == {f"{stage}/1" for stage in STAGES}
    assert json.loads((begun.work / "run.json").read_text())["config"]["limit"] == 4
    told = "unit 1 of sampled_answer will be computed again: a smaller --limit left it 1 of its 2 questions"
    assert told in capsys.readouterr().err
    assert begun.computed_again(limit=None) == {f"{stage}/2" for stage in STAGES}
    assert {name: time for name, time in begun.times().items() if name.endswith("/0")} == kept
    assert contents(begun.work) == contents(finished.work)
    file = json.loads((begun.work / "run.json").read_text())
    assert file["units"] == {"num_questions": 5, "dataset_rows": 5, "unit_size": 2, "num_units": 3}
    assert file["config"]["limit"] is None
    # As many as there are, and more than that.
    assert begun.computed_again(limit=5) == begun.computed_again(limit=9) == set()


def test_a_smaller_limit_is_refused_where_answers_lie_beyond_it(begun):
    told = "has answers to the first 3 questions, and this start asks 2: limit may grow and not shrink. Give --limit 3"
    before = contents(begun.work)
    assert told in begun.refusal(limit=2)
    assert told in begun.refusal(limit=2, continue_from_stage=2)
    assert contents(begun.work) == before
    assert begun.computed_again(limit=3) == set()


@pytest.mark.parametrize(
    ("limit", "raised", "missing"), [(2, 5, "2 of 3: 1-2"), (3, 5, "2 of 3: 1-2"), (3, 4, "1 of 2: 1")]
)
def test_a_limit_that_was_raised_by_mistake_may_go_back_as_long_as_nothing_was_computed(run, limit, raised, missing):
    """As where it is forgotten by a start that pairs, or scores, alone."""
    begin(run, limit)
    before = contents(run.work)
    for step in (1, 2):
        with pytest.raises(IncompleteError, match=f"missing {missing}; run the earlier stages first"):
            run.start(limit=raised, continue_from_stage=step)
    assert run.computed_again(limit=limit) == set()
    assert contents(run.work) == before


def test_a_unit_in_hand_is_dropped_where_another_start_raised_the_limit(sampled, monkeypatch):
    """It comes while the last unit of the smaller limit, which would have one question, is computed."""
    for unit in (1, 2):
        units.unit_path(sampled.work, "sampled_answer", unit).unlink()
    load = model_holder.load_model

    def meanwhile(name, path, **options):
        monkeypatch.setattr(model_holder, "load_model", load)
        # The unit in hand is of another shard.
        assert sampled.start(stop_after_stage=0, num_shards=3, shard_index=2) == 0
        return load(name, path, **options)

    monkeypatch.setattr(model_holder, "load_model", meanwhile)
    assert "has changed the run meanwhile: num_questions was 3, now 5. This unit of sampled_answer" in sampled.refusal(
        limit=3
    )
    assert units.published(sampled.work, "sampled_answer") == {0, 2}


def test_a_start_makes_no_pairs_once_another_one_has_raised_the_limit(run, finished, monkeypatch):
    """The other start has paired its questions while this one waited to pair fewer."""
    begin(run, 2)
    alone = last_step.alone

    def later(*arguments):
        monkeypatch.setattr(worker, "alone", alone)
        assert run.start() == 0
        return alone(*arguments)

    monkeypatch.setattr(worker, "alone", later)
    assert "num_questions was 2, now 5. It makes the pairs, and this start makes none" in run.refusal(limit=2)
    assert contents(run.work) == contents(finished.work)


@pytest.mark.parametrize("scored", [True, False])
def test_a_unit_of_a_smaller_limit_that_comes_late_counts_as_missing(begun, finished, monkeypatch, scored):
    """Of a start that was stopped for minutes between its last look at run.json and its link, say."""
    if not scored:
        for stage in STAGES[1:]:
            units.unit_path(begun.work, stage, 1).unlink()
    check, looks = published.check, []
    monkeypatch.setattr(published, "check", lambda *a: check(*a) if looks else looks.append(a))
    assert begun.start() == 0
    assert looks
    assert contents(begun.work) == contents(finished.work)


def test_the_size_of_units_stays_where_a_larger_limit_would_have_larger_ones(begun, monkeypatch):
    monkeypatch.setattr(run_file, "auto_unit_size", lambda count: 2 if count < NUM_QUESTIONS else 4)
    assert begun.computed_again(unit_size=None) == {f"{stage}/{unit}" for stage in STAGES for unit in (1, 2)}
    assert "unit_size was 2, now 4" in begun.refusal(unit_size=4)
    for path in begun.work.glob("*_*/unit-*.parquet"):
        path.unlink()
    assert begun.start(unit_size=None) == 0
    assert units.published(begun.work, "sampled_answer") == {0, 1}


def test_the_frozen_figures_are_those_of_all_questions_whatever_the_limit(run, finished):
    (run.work / "run.json").unlink()
    begin(run, 1)
    frozen = [json.loads((one.work / "run.json").read_text())["frozen"] for one in (run, finished)]
    assert frozen[0] == frozen[1]


def test_commands_between_the_pairs_of_a_smaller_limit_and_those_of_a_larger_one(begun, tmp_path, capsys):
    """The pairs are still those of three questions, while answers and scores of all five are there."""

    def told(*words: str) -> str:
        capsys.readouterr()
        assert main.main([*words]) == 0
        return capsys.readouterr().out

    def exported(folder: str, *flags: str) -> list[bytes]:
        told("export", str(begun.work), "--format", "trl,scored", "--output", str(tmp_path / folder), *flags)
        return [path.read_bytes() for path in sorted((tmp_path / folder).rglob("*.parquet"))]

    before, page = exported("before"), begun.work / "report/index.html"
    told("pairs", str(begun.work), "--name", "three", "--strategy", "best_worst")
    assert begun.start(stop_after_stage=1) == 0
    status = told("status", str(begun.work))
    assert "5 questions in 3 units of 2" in status
    assert status.splitlines()[-1].split() == ["pairs", "not", "written"]
    assert exported("after") == before
    assert [("--limit 3" in card.read_text()) for card in (tmp_path / "after").rglob("README.md")] == [True, True]
    told("report", str(begun.work))
    assert "3 (limit 3), 3 answers each" in page.read_text()
    told("pairs", str(begun.work), "--name", "more")
    assert pq.read_table(begun.work / "pairs/more.parquet")["idx"].unique().to_pylist() == [f"q{n}" for n in range(5)]
    assert begun.start(continue_from_stage=2) == 0
    assert told("status", str(begun.work)).splitlines()[-1].split() == ["pairs", "written"]
    assert "5, 3 answers each" in page.read_text()
    assert not set(exported("all")) & set(before)
    # The other pairing is still of three.
    told("report", str(begun.work), "--name", "three", "--compare", "pairs")
    assert len(exported("three", "--name", "three")) == len(before) == 2
