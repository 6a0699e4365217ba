"""Whole runs of other pairs of models: OmniLMM, two tokenizers, two families, the same model twice."""

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_files import hostile_rows, read, write

from data_engine.commands import pairs
from data_engine.job import checkpoints, model_holder, worker


def declare_another_tokenizer(monkeypatch) -> None:
    """From now on the reward model has another one than the instruct model."""
    found = checkpoints.Checkpoint.find

    def find(path, *settings):
        checkpoint = found(path, *settings)
        return dataclasses.replace(checkpoint, vocabulary="other") if path.endswith("reward") else checkpoint

    monkeypatch.setattr(checkpoints.Checkpoint, "find", staticmethod(find))


def test_a_source_that_is_added_is_paired_by_what_its_own_start_knows_of_tokenizers(
    config, goldens, tmp_path, monkeypatch
):
    """The pairs of the run were made by a rule alone, which says nothing of the reward model's tokenizer."""
    rule = tmp_path / "rule.py"
    rule.write_text("def length(row, answers):\n    return [-len(answer) for answer in answers]\n")
    ruled = {"rule": f"{rule}:length", "work_dir": str(tmp_path / "work")}
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:3])
    assert worker.run(config(dataset, rewards="rule", reward_model_path=None, **ruled)) == 0
    declare_another_tokenizer(monkeypatch)
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


def counted_as_text(model, answer: dict) -> int:
    """The counted tokens of a sampled answer that goes over as text: its end token is one where the model ended it."""
    return len(model.answer_ids("What is it?", answer["answer"])) - (answer["finish_reason"] == "length")


def test_models_with_different_tokenizers_compare_sums_and_means(config, goldens, tmp_path, monkeypatch, caplog):
    """The reward model's tokenizer is declared another one: its answers then go over as text."""
    declare_another_tokenizer(monkeypatch)
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
        assert len(reward["token_logps"]) == counted_as_text(model, answer)
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
        assert len(other["token_logps"]) == counted_as_text(model, answer)
        assert row["sum"] == pytest.approx(0.1 * (other["sum"] - one["sum"]))
        assert row["avg"] == pytest.approx(0.1 * (other["mean"] - one["mean"]))
        assert row["min"] is None
        assert row["last"] is None
    assert read(work / "pairs")


def test_only_a_pair_that_cannot_be_one_model_before_and_after_tuning_is_warned_of(goldens):
    llava, omni = (
        [checkpoints.Checkpoint.find(str(goldens / family / role)) for role in ("instruct", "reward")]
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
