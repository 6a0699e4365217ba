"""Pictures and units that are exchanged, lost or found again between two starts: lines of docs/bound.md."""

import io
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bound_run import STAGES, Run, picture
from PIL import Image
from run_files import noise, read

from data_engine.job import worker
from data_engine.pipeline.passes import AnswerRunner
from data_engine.planning.own_folders import FOLDERS
from data_engine.store import made_from, units


@pytest.mark.parametrize("stage", ["reward_logps", None])
def test_a_picture_that_was_exchanged_is_refused_by_its_row(run, stage):
    """Where it is scored, and where it would be written beside answers that never saw it."""
    if stage:
        shutil.rmtree(run.work / stage)
    (run.folder / "pictures/3.png").write_bytes(picture(1))
    written = pq.read_table(run.work / "dataset").to_pylist()
    assert "q3" in {row["idx"] for row in written}
    assert "row 'q3': its question or picture is not the one that its answers were sampled from" in run.refusal()
    assert pq.read_table(run.work / "dataset").to_pylist() == written


def exchange_answers(run: Run, unit: int) -> None:
    """Replace a sampled unit by one with other answers, of the same run."""
    path = units.unit_path(run.work, "sampled_answer", unit)
    whole = units.read_sealed(path)
    rows = whole.table.to_pylist()
    for row in rows:
        row["token_ids"] = row["token_ids"][:2]
    units.write_sealed(pa.Table.from_pylist(rows, whole.table.schema), path, whole.facts)


def test_log_probs_of_answers_that_were_exchanged_are_computed_again(run):
    exchange_answers(run, 1)
    assert run.computed_again() == {"instruct_logps/1", "reward_logps/1"}
    lengths = {(row["idx"], row["sample_index"]): len(row["token_ids"]) for row in run.answers()}
    for stage in STAGES[1:]:
        rows = read(run.work / stage)
        assert {(row["idx"], row["sample_index"]): len(row["token_logps"]) for row in rows} == lengths
    assert len(list((run.work / "replaced").iterdir())) == 2
    # What a run makes is looked for before the next one.
    assert {path.name for path in run.work.iterdir() if path.is_dir()} <= set(FOLDERS)


def test_answers_that_are_exchanged_while_others_pair_are_scored_again(run, monkeypatch):
    """After the look at the start, as a rank that was slow to publish would do it."""
    looked = worker.published.check

    def look(*arguments):
        monkeypatch.setattr(worker.published, "check", looked)
        looked(*arguments)
        exchange_answers(run, 2)

    monkeypatch.setattr(worker.published, "check", look)
    assert run.computed_again() == {"instruct_logps/2", "reward_logps/2", "sampled_answer/2"}


@pytest.mark.parametrize("continue_from_stage", [0, 2])
def test_units_that_another_start_computes_again_meanwhile_stay(run, monkeypatch, continue_from_stage):
    """Between this start's look at the answers and its look at their log-probs, or while it pairs."""
    exchanged = run.copy(run.folder.parent / "exchanged")
    exchange_answers(exchanged, 1)
    assert exchanged.start() == 0
    module = worker.published.units if continue_from_stage == 0 else made_from.units
    name = "read_unit_facts" if continue_from_stage == 0 else "read_unit"
    read_one = getattr(module, name)

    def late(work_dir, stage, unit):
        found = read_one(work_dir, stage, unit)
        if (stage, unit) == ("sampled_answer", 1):
            monkeypatch.setattr(module, name, read_one)
            for other in STAGES:
                paths = [units.unit_path(one.work, other, 1) for one in (run, exchanged)]
                os.replace(shutil.copy(paths[1], f"{paths[0]}.new"), paths[0])
        return found

    if continue_from_stage == 0:
        monkeypatch.setattr(module, name, late)
        assert run.start() == 0
    else:
        looked = worker.published.check
        monkeypatch.setattr(worker.published, "check", lambda *a: (looked(*a), monkeypatch.setattr(module, name, late)))
        with pytest.raises(worker.IncompleteError, match="one of them was exchanged meanwhile"):
            run.start(continue_from_stage=2)
    for stage in STAGES:
        assert len({units.unit_path(one.work, stage, 1).read_bytes() for one in (run, exchanged)}) == 1
    assert not list((run.work / "replaced").glob("*"))


def test_answers_that_were_exchanged_are_refused_where_only_pairs_are_asked_for(run):
    exchange_answers(run, 1)
    with pytest.raises(worker.IncompleteError, match="instruct_logps, missing 1 of 3: 1"):
        run.start(continue_from_stage=2)


def test_a_unit_that_was_damaged_and_comes_out_the_same_keeps_its_log_probs(run):
    path = units.unit_path(run.work, "sampled_answer", 0)
    path.write_bytes(path.read_bytes()[:-9])
    assert run.computed_again() == {"sampled_answer/0"}


def test_a_unit_that_turns_out_damaged_while_another_one_is_in_hand_leaves_the_others_whole(run, monkeypatch):
    """As on a GPU, unit 0 is being scored when the answers of unit 1 cannot be read: it is scored anew, once."""
    scored = [units.unit_path(run.work, stage, unit) for stage in STAGES[1:] for unit in (0, 2)]
    before = [path.read_bytes() for path in scored]
    for stage in STAGES[1:]:
        shutil.rmtree(run.work / stage)
    looked, begin = worker.published.check, AnswerRunner.__init__
    path = units.unit_path(run.work, "sampled_answer", 1)

    def damage(*arguments):
        looked(*arguments)
        path.write_bytes(path.read_bytes()[:-9])

    def goes_on(runner, *arguments, **options):
        begin(runner, *arguments, **options)
        runner._lag, runner._goes_on = 1, True

    monkeypatch.setattr(worker.published, "check", damage)
    monkeypatch.setattr(AnswerRunner, "__init__", goes_on)
    # Without sampling, which would have the scorer go.
    with pytest.raises(worker.IncompleteError, match="sampled_answer, missing 1 of 3: 1"):
        run.start(continue_from_stage=1)
    assert [path.read_bytes() for path in scored] == before


@pytest.mark.slow
def test_rows_that_could_not_be_read_are_asked_when_they_can_be(run, monkeypatch):
    """Two pictures are on a disk that is mounted late; a third row is bad for good."""
    shutil.rmtree(run.work)
    away = [run.folder / f"pictures/{number}.png" for number in (1, 4)]
    contents = [file.read_bytes() for file in away]
    for file in away:
        file.unlink()
    (run.folder / "pictures/2.png").write_bytes(b"no picture")
    assert run.start() == 0
    told = {row["idx"]: row["missing"] for row in units.left_out(run.work)}
    assert told == {"q1": True, "q4": True, "q2": False}
    assert {row["idx"] for row in run.answers()} == {"q0", "q3"}
    # Still away: nothing is computed.
    assert run.computed_again() == set()
    away[0].write_bytes(contents[0])
    # Not by a start that leaves sampling out.
    assert run.computed_again(continue_from_stage=1) == set()
    assert run.computed_again() == {f"{stage}/0" for stage in STAGES}
    away[1].write_bytes(contents[1])
    assert run.computed_again() == {f"{stage}/2" for stage in STAGES}
    (run.folder / "pictures/2.png").write_bytes(picture(2))
    assert run.computed_again() == set()
    assert {row["idx"]: row["missing"] for row in units.left_out(run.work)} == {"q2": False}
    fresh = run.copy(run.folder.parent / "fresh")
    (fresh.folder / "pictures/2.png").write_bytes(b"no picture")
    shutil.rmtree(fresh.work)
    assert fresh.start() == 0
    for stage in STAGES:
        for unit in range(3):
            paths = (units.unit_path(one.work, stage, unit) for one in (run, fresh))
            assert len({path.read_bytes() for path in paths}) == 1


def test_a_picture_that_is_away_while_it_is_scored_is_scored_when_it_is_back(sampled):
    file = sampled.folder / "pictures/0.png"
    content = file.read_bytes()
    file.unlink()
    assert sampled.start() == 0
    assert {row["idx"] for row in read(sampled.work / "reward_logps")} == {"q1", "q2", "q3", "q4"}
    # Still away: nothing is computed.
    assert sampled.computed_again() == set()
    file.write_bytes(content)
    # A start that computes none of these stages leaves them.
    assert sampled.computed_again(continue_from_stage=2) == set()
    # Nor does one of another shard.
    assert sampled.start(continue_from_stage=1, stop_after_stage=1, num_shards=2, shard_index=1) == 0
    assert units.published(sampled.work, "reward_logps") == {0, 1, 2}
    assert sampled.computed_again(continue_from_stage=1) == {"instruct_logps/0", "reward_logps/0"}


def test_a_pair_whose_picture_has_gone_has_no_source(run):
    before = read(run.work / "pairs")
    (run.folder / "pictures/3.png").unlink()
    # The dataset that is there has the picture.
    dataset = (run.work / "dataset/dpo_dataset.parquet").read_bytes()
    refused = run.refusal()
    assert "would lack the pairs of 1 question " in refused
    assert """as of idx 'q3': image path "3.png" is not a readable file""" in refused
    assert (run.work / "dataset/dpo_dataset.parquet").read_bytes() == dataset
    assert read(run.work / "pairs") == before
    (run.work / "pairs/pairs.parquet").write_bytes(b"")
    assert "would lack the pairs of 1 question " in run.refusal()
    (run.work / "pairs/pairs.parquet").unlink()
    assert run.start() == 0
    # What was lost before is no news.
    assert run.start() == 0
    pairs = read(run.work / "pairs")
    gone = {row["status"] for row in pairs if row["idx"] == "q3"}
    kept = sum(row["status"] == "kept" for row in before if row["idx"] == "q3")
    assert kept > 0
    assert "kept" not in gone
    funnel = json.loads(pq.read_schema(run.work / "pairs/pairs.parquet").metadata[b"funnel"])
    assert funnel["dropped"]["no_source"] == kept == sum(row["status"] == "no_source" for row in pairs)
    assert "q3" not in {row["idx"] for row in read(run.work / "dataset")}


# run.json.


def test_turned_pictures_are_counted(run):
    """Two of five stand on their side; a broken row's picture is not counted."""
    shutil.rmtree(run.work)
    for number in (0, 3):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        noise((60, 40), 60).save(file, "JPEG", exif=exif)
        (run.folder / f"pictures/{number}.png").write_bytes(file.getvalue())
    assert run.start() == 0
    funnel = json.loads(pq.read_schema(run.work / "pairs/pairs.parquet").metadata[b"funnel"])
    assert funnel["turned"] == 2
    assert "with a picture turned upright" in (run.work / "report/index.html").read_text()
