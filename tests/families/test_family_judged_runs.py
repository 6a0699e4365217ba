"""Whole runs of judges of transformers' families: given answers, no model to train."""

import json
import shutil

import judges
import product
import pyarrow.parquet as pq
import pytest
import runs
import torch
from families import named
from test_family_judges import sampled

from data_engine import load_model
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import model_holder, worker
from data_engine.pipeline.judge import Scalar, YesNo
from data_engine.questions.dataset import load_questions
from data_engine.rewards.yesno import YesNoTemplate

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

WORDS = ("red", "blue", "a cat", "small")


def settings(folder, checkpoint) -> dict[str, object]:
    """A run of given answers to three questions, with both judges."""
    answers = [{"idx": f"q{n}", "answer": f"It is {word}."} for n in range(3) for word in WORDS]
    (folder / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in answers))
    paths = {
        "yesno_model_path": judges.saying_yes(checkpoint.folder, folder / "yesno"),
        "scalar_model_path": judges.with_tensors(checkpoint.folder, folder / "scalar", judges.head(64)),
        "answers": folder / "answers.jsonl", "work_dir": folder / "work",
    }  # fmt: skip
    names = {"yesno_model_name": "auto", "scalar_model_name": "auto", "rewards": "yesno,scalar"}
    given = {"dataset_path": runs.few(folder), "rank": 2, "distance": 1000, "unit_size": 2, "threads": 1}
    return {**{name: str(path) for name, path in paths.items()}, **names, **given, "device": product.DEVICE,
            "dtype": "float32"}  # fmt: skip


@pytest.mark.parametrize("name", named(["qwen2_5_vl", "paligemma"]))
def test_a_run_of_judges_alone_gives_what_they_say_of_each_answer(checkpoints, tmp_path, name):
    given = settings(tmp_path, checkpoints(name))
    assert worker.run(RunConfig(**given)) == 0
    judge = load_model("auto", given["yesno_model_path"], device=product.DEVICE, dtype="float32")
    scalar = load_model("auto", given["scalar_model_path"], device=product.DEVICE, dtype="float32", headed=True)
    questions = list(load_questions(given["dataset_path"]).rows(range(3)))
    readings = {"yesno": (judge, YesNo(judge, YesNoTemplate.read(None))), "scalar": (scalar, Scalar(scalar))}
    for source, (model, reading) in readings.items():
        rows = runs.read(tmp_path / "work" / source)
        assert [(row["idx"], row["sample_index"]) for row in rows] == [(f"q{n}", k) for n in range(3) for k in range(4)]
        for n, question in enumerate(questions):
            answers = sampled([f"It is {word}." for word in WORDS], question.idx)
            expected = judges.scores(model, reading, question, answers)
            found = [row["score"] for row in rows[4 * n : 4 * n + 4]]
            torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-4, rtol=0)
    assert pq.read_table(tmp_path / "work/pairs/pairs.parquet").num_rows > 0


def test_another_number_in_the_head_is_another_reward_model(checkpoints, tmp_path):
    given = settings(tmp_path, checkpoints("qwen2_5_vl")) | {"rewards": "scalar", "stop_after_stage": 1}
    assert worker.run(RunConfig(**given)) == 0
    head = judges.head(64)
    head["v_head.summary.bias"] += 1
    other = judges.with_tensors(checkpoints("qwen2_5_vl").folder, tmp_path / "other", head)
    with pytest.raises(UserError, match="scalar_model was"):
        worker.run(RunConfig(**given | {"scalar_model_path": str(other)}))


def test_a_model_that_judges_its_own_answers_is_loaded_once_and_says_what_a_copy_of_it_says(
    checkpoints, tmp_path, monkeypatch
):
    given = settings(tmp_path, checkpoints("qwen2_5_vl"))
    folder, loaded, load = given["yesno_model_path"], [], model_holder.load_model
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: loaded.append(a) or load(*a, **b))
    copy = shutil.copytree(folder, tmp_path / "copy")
    flags = {name: value for name, value in given.items() if name != "answers" and not name.startswith("scalar")}
    flags |= {"rewards": "yesno", "instruct_model_path": folder, "instruct_model_name": "auto", "sample_k": 3,
              "stop_after_stage": 1, "max_new_tokens": 6}  # fmt: skip
    found = []
    for name, judge in (("own", folder), ("other", str(copy))):
        loaded.clear()
        work = tmp_path / name
        assert worker.run(RunConfig(**flags | {"yesno_model_path": judge, "work_dir": str(work)})) == 0
        found.append((len(loaded), runs.read(work / "sampled_answer"), runs.read(work / "yesno")))
    assert [number for number, *_ in found] == [1, 2]
    assert found[0][1:] == found[1][1:]
