"""Whole runs in this process: hostile rows, seeds, pixels, real photographs, and what ends a run early."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prompts import EmbeddedPrompt, prefix
from run_files import hostile_rows, noise, png, read, wide_picture, write

from data_engine.errors import UserError
from data_engine.job import last_step, model_holder, worker
from data_engine.planning.own_folders import FOLDERS
from data_engine.preferences.funnel import Funnel
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.scheduler import sample
from data_engine.sampling.requests import PromptRequest
from data_engine.seeds import seed_for
from data_engine.store import units

PHOTOS = Path(__file__).parents[3] / "shared/photos/questions.parquet"
BAD = {"undecodable", "truncated", "empty", "strip", "no question", "no image"}


def test_bad_rows_are_quarantined_with_a_reason_and_the_run_goes_on(config, tmp_path, capsys):
    rows = hostile_rows()
    assert worker.run(config(write(tmp_path / "questions.parquet", rows))) == 0
    quarantined = {row["idx"]: row["reason"] for row in list(units.left_out(tmp_path / "work"))}
    path = tmp_path / "work/logs/quarantine.jsonl"
    assert capsys.readouterr().out.endswith(f"\neach row that was quarantined, with its whole reason: {path}\n")
    assert {row["idx"]: row["reason"] for row in map(json.loads, path.read_text().splitlines())} == quarantined
    assert set(quarantined) == BAD
    assert "60000" in quarantined["strip"]
    assert all(reason and len(reason) < 300 for reason in quarantined.values())
    answered = {row["idx"] for row in read(tmp_path / "work/sampled_answer")}
    assert answered == {idx for idx, _, _ in rows} - BAD
    for stage in ("instruct_logps", "reward_logps"):
        assert len(read(tmp_path / "work" / stage)) == 4 * len(answered)
    # What a run makes is looked for before the next one.
    assert {path.name for path in (tmp_path / "work").iterdir() if path.is_dir()} <= set(FOLDERS)
    for row in read(tmp_path / "work/dataset"):
        assert "<image>" not in row["question"]
        assert row["chosen"].strip()
        assert row["image"]["bytes"]


def test_on_bad_row_error_stops_with_the_row_and_keeps_published_units(config, tmp_path):
    rows = hostile_rows()
    good = [(f"good {i}", text, data) for i, (_, text, data) in enumerate([rows[0]] * 4)]
    dataset = write(tmp_path / "questions.parquet", good + rows)
    with pytest.raises(UserError, match="'undecodable' cannot be used"):
        worker.run(config(dataset, on_bad_row="error"))
    assert {row["idx"] for row in read(tmp_path / "work/sampled_answer")} == {f"good {i}" for i in range(4)}


def test_a_dataset_of_bad_rows_alone_ends_in_an_empty_dataset_and_says_why(config, tmp_path, capsys):
    """Two rows that are decoded, and then found too long to be asked."""
    whole = png(Image.new("RGB", (60, 60)))
    dataset = write(tmp_path / "questions.parquet", [("a", "why " * 5000, whole), ("b", "", b"x" * 9)])
    assert worker.run(config(dataset)) == 4
    assert read(tmp_path / "work/dataset") == []
    told = capsys.readouterr().err
    assert "nothing could be written" in told
    assert "1 sampled_answer: rows left out: question too long" in told
    assert "1 sampled_answer: rows left out: not an image" in told


def test_a_dataset_of_which_no_first_row_can_be_used_is_refused_before_any_work(config, tmp_path, monkeypatch):
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: pytest.fail("no model is needed"))
    rows = [(f"r{number}", "What?", b"x" * number) for number in range(33)]
    with pytest.raises(UserError, match=r"none of the first 32 rows .* can be used; .* \(31 rows\): not an image"):
        worker.run(config(write(tmp_path / "questions.parquet", rows)))
    assert not read(tmp_path / "work/sampled_answer")


def test_a_first_unit_whose_rows_all_fail_alike_ends_the_run(config, tmp_path):
    """Found by the model alone: each question is too long for it."""
    whole = png(Image.new("RGB", (60, 60)))
    rows = [(f"r{number}", "why " * (5000 + number), whole) for number in range(5)]
    with pytest.raises(UserError, match=r"none of the first 4 rows .* this reason: question too long"):
        worker.run(config(write(tmp_path / "questions.parquet", [*rows[:4], ("good", "why?", whole)])))
    assert not read(tmp_path / "work/sampled_answer")


def test_a_first_unit_whose_rows_all_fail_alike_is_left_out_where_another_one_is_there(config, tmp_path):
    whole = png(Image.new("RGB", (60, 60)))
    rows = [(f"r{number}", "why " * 5000 if number < 4 else "why?", whole) for number in range(5)]
    dataset = write(tmp_path / "questions.parquet", rows)
    assert worker.run(config(dataset, num_shards=2, shard_index=1, stop_after_stage=1)) == 0
    assert worker.run(config(dataset)) == 0
    assert [row["idx"] for row in units.left_out(tmp_path / "work")] == ["r0", "r1", "r2", "r3"]


def test_why_there_is_no_pair_is_told_by_every_reason_the_most_frequent_first(tmp_path):
    plan = SimpleNamespace(work_dir=tmp_path, config=SimpleNamespace(strategy="cross"))
    not_ranked, dropped = Counter(empty=2, duplicate=30), Counter(identical=5)
    funnel = Funnel(ranked=7, candidate_pairs=5, not_ranked=not_ranked, dropped=dropped)
    assert last_step.why_nothing(plan, funnel) == (
        "nothing could be written, the dataset has no row: 30 answers not ranked: duplicate; 5 pairs dropped: "
        "identical; 2 answers not ranked: empty"
    )


def test_a_question_that_leaves_no_room_is_quarantined_defect_30(config, tmp_path):
    whole = png(Image.new("RGB", (60, 60)))
    dataset = write(tmp_path / "questions.parquet", [("long", "why " * 5000, whole), ("short", "why", whole)])
    assert worker.run(config(dataset)) == 0
    [row] = list(units.left_out(tmp_path / "work"))
    assert row["idx"] == "long"
    assert "question too long" in row["reason"]


def test_integer_ids_stay_integers(config, tmp_path):
    whole = png(noise((60, 60), 80))
    rows = [{"idx": i, "question": "What is it?", "image": {"bytes": whole, "path": "x.png"}} for i in (7, 3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions.parquet")
    assert worker.run(config(tmp_path / "questions.parquet")) == 0
    for folder in ("sampled_answer", "instruct_logps", "pairs", "dataset"):
        [file] = (tmp_path / "work" / folder).glob("*.parquet")
        assert pa.types.is_integer(pq.read_schema(file).field("idx").type)


def test_both_stages_see_the_same_pixels_when_asked(config, tmp_path, instruct):
    wide, middle = wide_picture()
    dataset = write(tmp_path / "questions.parquet", [("q", "What is it?", png(wide))])
    worker.run(config(dataset, work_dir=str(tmp_path / "padded")))
    worker.run(config(dataset, work_dir=str(tmp_path / "cropped"), same_pixels=True))
    padded, cropped = (
        [(row["sample_index"], row["token_ids"]) for row in read(tmp_path / name / "sampled_answer")]
        for name in ("padded", "cropped")
    )
    assert padded != cropped
    # By hand: the middle of the picture, sampled with the same seeds.
    params = SamplingParams(0.7, 50, 1.0, 1.0, 8)
    for image, crop, expected in ((wide, False, padded), (wide, True, cropped), (middle, False, cropped)):
        shared = prefix(instruct, instruct.pixels(image, crop, 64), "What is it?")
        keys = [seed_for(0, "q", number) for number in range(4)]
        found = sample(instruct, [PromptRequest(EmbeddedPrompt(shared), keys)], params, 4)
        assert [(answer.sample_index, answer.token_ids) for answer in found] == expected


def test_the_order_of_units_and_their_neighbours_do_not_matter_to_an_answer(config, tmp_path):
    """Random numbers hang on idx: the same question in another place of another dataset gets the same answers."""
    rows = [row for row in hostile_rows() if row[0] in ("good", "gray", "alpha", "marker", "no words")]
    worker.run(config(write(tmp_path / "a.parquet", rows), work_dir=str(tmp_path / "a"), unit_size=2))
    worker.run(config(write(tmp_path / "b.parquet", rows[::-1]), work_dir=str(tmp_path / "b"), unit_size=3))
    by_id = [
        {(row["idx"], row["sample_index"]): row["token_ids"] for row in read(tmp_path / name / "sampled_answer")}
        for name in "ab"
    ]
    assert by_id[0] == by_id[1]


def test_another_seed_gives_other_answers(config, tmp_path):
    """Else equal datasets would say nothing."""
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])
    for seed in (0, 1):
        worker.run(config(dataset, work_dir=str(tmp_path / str(seed)), seed=seed, stop_after_stage=0))
    assert read(tmp_path / "0/sampled_answer") != read(tmp_path / "1/sampled_answer")


def test_splitting_a_model_without_deepspeed_is_refused_with_what_to_install(config, tmp_path, monkeypatch):
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs DeepSpeed, .*: pip install 'vlm-data-engine\[zero3\]', or set zero3 to"
    ):
        worker.run(config(dataset, zero3="on"))


def test_a_run_says_and_stores_why_its_models_are_not_split(config, tmp_path, capsys):
    assert worker.run(config(write(tmp_path / "questions.parquet", hostile_rows()[:1]))) == 0
    stored = json.loads((tmp_path / "work/run.json").read_text())["zero3"]
    assert (stored["split"], stored["asked"], stored["world_size"]) == (False, "auto", 1)
    assert stored["told"].startswith("zero3 auto: each rank holds a whole model (0.0 GB of weights + 8.6 GB of working")
    assert stored["told"] in capsys.readouterr().err


def test_a_unit_that_cannot_be_written_ends_the_run_and_frees_its_claim(config, tmp_path, monkeypatch, capsys):
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker.units, "publish", full)
    assert worker.run(config(dataset)) == 75
    assert "No space left on device. Every published unit is kept" in capsys.readouterr().err
    assert not list((tmp_path / "work/claims").iterdir())
    assert not read(tmp_path / "work/sampled_answer")


@pytest.mark.skipif(not PHOTOS.exists(), reason="../shared/photos is not here")
@pytest.mark.parametrize("number", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_real_photographs_go_through_all_three_stages(config, tmp_path, number):
    assert worker.run(config(PHOTOS, unit_size=8, limit=number)) == 0
    assert len(read(tmp_path / "work/sampled_answer")) == number * 4
    assert not list(units.left_out(tmp_path / "work"))
    assert read(tmp_path / "work/dataset")
