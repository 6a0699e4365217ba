"""Whole runs in this process: hostile rows, other tokenizers, other settings, real photographs."""

import dataclasses
import importlib.util
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prompts import EmbeddedPrompt, prefix
from run_files import hostile_rows, noise, png, read, wide_picture, write

from data_engine.commands import pairs
from data_engine.errors import UserError
from data_engine.job import checkpoints, model_holder, run_file, worker
from data_engine.planning.own_folders import FOLDERS
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.scheduler import sample
from data_engine.sampling.requests import PromptRequest
from data_engine.seeds import seed_for
from data_engine.store import units

PHOTOS = Path(__file__).parents[2] / "shared/photos/questions.parquet"


BAD = {"undecodable", "truncated", "empty", "strip", "no question", "no image"}


def test_bad_rows_are_quarantined_with_a_reason_and_the_run_goes_on(config, tmp_path):
    rows = hostile_rows()
    assert worker.run(config(write(tmp_path / "questions.parquet", rows))) == 0
    quarantined = {row["idx"]: row["reason"] for row in list(units.left_out(tmp_path / "work"))}
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
    with pytest.raises(UserError, match=r"none of the first 4 rows .* same reason: question too long"):
        worker.run(config(write(tmp_path / "questions.parquet", [*rows[:4], ("good", "why?", whole)])))
    assert not read(tmp_path / "work/sampled_answer")


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


def test_a_source_that_is_added_is_paired_by_what_its_own_start_knows_of_tokenizers(
    config, goldens, tmp_path, monkeypatch
):
    """The pairs of the run were made by a rule alone, which says nothing of the reward model's tokenizer."""
    rule = tmp_path / "rule.py"
    rule.write_text("def length(row, answers):\n    return [-len(answer) for answer in answers]\n")
    ruled = {"rule": f"{rule}:length", "work_dir": str(tmp_path / "work")}
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:3])
    assert worker.run(config(dataset, rewards="rule", reward_model_path=None, **ruled)) == 0
    found = checkpoints.Checkpoint.find

    def find(path, name, revision, **settings):
        checkpoint = found(path, name, revision, **settings)
        return dataclasses.replace(checkpoint, vocabulary="other") if path.endswith("reward") else checkpoint

    monkeypatch.setattr(checkpoints.Checkpoint, "find", staticmethod(find))
    assert worker.run(config(dataset, rewards="rule,implicit", stop_after_stage=1, **ruled)) == 0
    assert pairs.main([ruled["work_dir"], "--name", "added", "--rank_by", "rule"]) == 0
    table = pq.read_table(tmp_path / "work/pairs/added.parquet")
    assert len(table)
    # Sums can be compared; single tokens cannot.
    assert table["chosen_sum"].null_count == 0
    assert table["chosen_implicit_min"].null_count == len(table)
    # A later start without the reward model says nothing of it either.
    without = config(dataset, rewards="rule", reward_model_path=None, stop_after_stage=1, **ruled)
    assert worker.run(without) == 0
    assert json.loads((tmp_path / "work/run.json").read_text())["same_tokenizer"] is False


def test_models_with_different_tokenizers_compare_sums_and_means(config, goldens, tmp_path, monkeypatch, caplog):
    """The reward model's tokenizer is declared another one: its answers then go over as text."""
    found = checkpoints.Checkpoint.find

    def find(path, name, revision, **settings):
        checkpoint = found(path, name, revision, **settings)
        other = path.endswith("reward")
        return dataclasses.replace(checkpoint, vocabulary="other") if other else checkpoint

    monkeypatch.setattr(checkpoints.Checkpoint, "find", staticmethod(find))
    monkeypatch.setattr(worker, "log_to_stderr", lambda ranks: None)
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])
    with caplog.at_level("WARNING"):
        # Nothing is asserted of the pairs: of one question, the length balance may leave none.
        assert worker.run(config(dataset, debug=True)) in (0, 4)
    assert sum("different tokenizers" in record.message for record in caplog.records) == 1
    sampled, rewarded = read(tmp_path / "work/sampled_answer"), read(tmp_path / "work/reward_logps")
    instructed = read(tmp_path / "work/instruct_logps")
    model = model_holder.load_model(None, str(goldens / "llava/reward"), device="cpu")
    for answer, reward, instruct in zip(sampled, rewarded, instructed, strict=True):
        assert len(instruct["token_logps"]) == len(answer["token_ids"])
        assert len(reward["token_logps"]) == len(model.answer_ids("What is it?", answer["answer"]))
    for row, reward, instruct in zip(
        json.loads((tmp_path / "work/debug/rewards.json").read_text()), rewarded, instructed, strict=True
    ):
        assert row["sum"] == pytest.approx(0.1 * (reward["sum"] - instruct["sum"]))
        assert row["avg"] == pytest.approx(0.1 * (reward["mean"] - instruct["mean"]))
        assert row["min"] is None
        assert row["last"] is None


def paths_of(goldens: Path, instruct: str, reward: str) -> dict[str, str]:
    return {
        "instruct_model_path": str(goldens / instruct / "instruct"),
        "reward_model_path": str(goldens / reward / "reward"),
    }


def test_an_omnilmm_pair_goes_through_all_three_stages(config, goldens, omni_instruct, omni_reward):
    """The log-probs on disk are those of the sampled ids, with the image; no warning about the pair of models."""
    from data_engine import score_answers

    questions = goldens / "llava/dataset/questions.parquet"
    settings = config(questions, **paths_of(goldens, "omnilmm", "omnilmm"), instruct_model_name="OmniLMM-12B")
    assert worker.run(settings) == 0
    work = Path(settings.work_dir)
    sampled = read(work / "sampled_answer")
    assert len(sampled) == 8 * 4
    assert read(work / "dataset")
    images = {row["idx"]: (row["image"]["bytes"], row["question"]) for row in pq.read_table(questions).to_pylist()}
    for stage, model in (("instruct_logps", omni_instruct), ("reward_logps", omni_reward)):
        for answer, row in list(zip(sampled, read(work / stage), strict=True))[::5]:
            [expected] = score_answers(model, *images[answer["idx"]], [answer["token_ids"]])
            assert row["token_logps"] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize(("instruct", "reward"), [("llava", "omnilmm"), ("omnilmm", "llava")])
def test_models_of_two_families_compare_the_same_texts(config, goldens, monkeypatch, caplog, instruct, reward):
    monkeypatch.setattr(worker, "log_to_stderr", lambda ranks: None)
    questions = goldens / "llava/dataset/questions.parquet"
    settings = config(questions, **paths_of(goldens, instruct, reward), debug=True)
    with caplog.at_level("WARNING"):
        assert worker.run(settings) == 0
    told = " ".join(record.message for record in caplog.records)
    assert "different tokenizers" in told
    assert f"does not look tuned from the instruct model (family {instruct} against {reward}, hidden_size" in told
    work = Path(settings.work_dir)
    sampled, instructed, rewarded = (
        read(work / stage) for stage in ("sampled_answer", "instruct_logps", "reward_logps")
    )
    model = model_holder.load_model(None, settings.reward_model_path, device="cpu")
    table = json.loads((work / "debug/rewards.json").read_text())
    for answer, one, other, row in zip(sampled, instructed, rewarded, table, strict=True):
        assert len(one["token_logps"]) == len(answer["token_ids"])
        assert len(other["token_logps"]) == len(model.answer_ids("", answer["answer"]))
        assert row["sum"] == pytest.approx(0.1 * (other["sum"] - one["sum"]))
        assert row["avg"] == pytest.approx(0.1 * (other["mean"] - one["mean"]))
        assert row["min"] is None
        assert row["last"] is None
    assert read(work / "pairs")


def test_only_a_pair_that_cannot_be_one_model_before_and_after_tuning_is_warned_of(goldens):
    llava, omni = (
        [checkpoints.Checkpoint.find(str(goldens / family / role), None, None) for role in ("instruct", "reward")]
        for family in ("llava", "omnilmm")
    )
    assert checkpoints.kinship_warnings(*llava) == []
    assert checkpoints.kinship_warnings(*omni) == []
    [warning] = checkpoints.kinship_warnings(omni[0], omni[0])
    assert "the reward model is the instruct model itself" in warning
    deeper = dataclasses.replace(llava[1], sizes=llava[1].sizes | {"num_hidden_layers": 9})
    [warning] = checkpoints.kinship_warnings(llava[0], deeper)
    assert "(num_hidden_layers 2 against 9)" in warning
    # transformers' layout may leave a size to its default: what is not there cannot differ
    assert checkpoints.kinship_warnings(llava[0], dataclasses.replace(llava[1], sizes={})) == []
    [warning] = checkpoints.kinship_warnings(llava[0], omni[1])
    assert "family llava against omnilmm" in warning


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


@pytest.mark.parametrize("settings", [{"temperature": 0.9}, {"limit": 1}, {"dtype": "bfloat16"}, {"unit_size": 9}])
def test_a_work_dir_of_another_configuration_is_refused_by_name(config, tmp_path, settings):
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])
    worker.run(config(dataset, stop_after_stage=0))
    [name] = settings
    with pytest.raises(UserError, match=rf"{name} was .*, now {next(iter(settings.values()))!r}"):
        worker.run(config(dataset, **settings))


def test_a_copy_of_the_instruct_model_as_reward_model_is_warned_of_and_gives_margins_of_0(
    config, goldens, tmp_path, capsys
):
    """Whatever ranks by implicit alone pairs them all the same, as the reference does."""
    shutil.copytree(goldens / "llava/instruct", tmp_path / "copy/reward")
    (tmp_path / "copy/openai").symlink_to(goldens / "llava/openai")
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])
    assert worker.run(config(dataset, reward_model_path=str(tmp_path / "copy/reward"))) == 0
    assert "the reward model is the instruct model itself" in capsys.readouterr().err
    assert {row["margin"] for row in read(tmp_path / "work/pairs")} == {0.0}


def test_a_changed_model_or_dataset_is_refused_by_name(config, goldens, tmp_path):
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])
    assert worker.run(config(dataset)) == 0
    with pytest.raises(UserError, match="reward_model was"):
        worker.run(config(dataset, reward_model_path=str(goldens / "llava/instruct")))
    with pytest.raises(UserError, match="dataset was"):
        worker.run(config(write(tmp_path / "questions.parquet", hostile_rows()[5:6])))


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


@pytest.mark.skipif(not PHOTOS.exists(), reason="../shared/photos is not here")
@pytest.mark.parametrize("number", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_real_photographs_go_through_all_three_stages(config, tmp_path, number):
    assert worker.run(config(PHOTOS, unit_size=8, limit=number)) == 0
    assert len(read(tmp_path / "work/sampled_answer")) == number * 4
    assert not list(units.left_out(tmp_path / "work"))
    assert read(tmp_path / "work/dataset")
