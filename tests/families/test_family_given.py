"""Given answers under models of transformers: each encodes a text by its own template, and scores ids as they are."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from families import named
from runs import Pair, few, read

from data_engine import load_model
from data_engine.config import RunConfig
from data_engine.job import worker
from data_engine.questions.dataset import load_questions

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

TEXTS = ("Two cats.", "A dog <|im_end|> and a <|image|>.", "  Yes\nand no.")


@pytest.fixture
def start(tmp_path):
    """A run of a pair of models on three questions; its work_dir."""
    questions = few(tmp_path)

    def run(pair: Pair, name: str, **more: object) -> Path:
        work = tmp_path / name
        paths = {"dataset_path": questions, "work_dir": str(work)}
        assert worker.run(RunConfig(**pair.flags(**paths | more))) == 0
        return work

    return run


@pytest.mark.parametrize("name", named(["qwen2_5_vl"]))
def test_texts_are_encoded_by_the_models_own_template(checkpoints, start, tmp_path, name, capsys):
    pair = Pair(checkpoints(name), tmp_path)
    ids = [question.idx for question in load_questions(str(tmp_path / "questions.parquet")).rows(range(3))]
    rows = [{"idx": idx, "answer": text} for idx in ids for text in TEXTS]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    work = start(pair, "work", answers=str(tmp_path / "answers.jsonl"), rank=1, debug=True)
    model = load_model("auto", str(pair.instruct), device="cpu", dtype="float32")
    asked = {question.idx: question.conversation for question in
             load_questions(str(tmp_path / "questions.parquet")).rows(range(3))}  # fmt: skip
    expected = {
        (idx, index): len(model.encode_answer(asked[idx], text)) for idx in ids for index, text in enumerate(TEXTS)
    }
    for stage in ("instruct_logps", "reward_logps"):
        found = {(row["idx"], row["sample_index"]): len(row["token_logps"]) for row in read(work / stage)}
        assert found == expected
    assert all(row["min"] is not None for row in json.loads((work / "debug/rewards.json").read_text()))
    assert "differ between the models" not in capsys.readouterr().err
    # Another file of the template: the same ids cannot be taken for certain.
    template = next(iter(sorted(pair.reward.glob("*template*"))))
    template.write_text(template.read_text() + "\n")
    other = start(pair, "other", answers=str(tmp_path / "answers.jsonl"), rank=1, debug=True)
    assert "the files of tokenizer or chat template differ between the models" in capsys.readouterr().err
    then, now = (json.loads((one / "debug/rewards.json").read_text()) for one in (work, other))
    assert {row["min"] for row in now} == {None}
    assert [row["sum"] for row in now] == pytest.approx([row["sum"] for row in then], abs=1e-9)
    assert [row["avg"] for row in now] == pytest.approx([row["avg"] for row in then], abs=1e-9)


@pytest.mark.families
@pytest.mark.parametrize("name", named(["qwen2_5_vl"]))
def test_own_token_ids_put_in_again_give_the_same_log_probs_and_texts(checkpoints, start, tmp_path, name):
    """Without their texts, which come from the tokenizer alone."""
    pair = Pair(checkpoints(name), tmp_path)
    own = start(pair, "own")
    sampled = read(own / "sampled_answer")
    assert len({(row["idx"], tuple(row["token_ids"])) for row in sampled}) == len(sampled)
    table = pa.table({column: [row[column] for row in sampled] for column in ("idx", "token_ids")})
    pq.write_table(table, tmp_path / "answers.parquet")
    work = start(pair, "work", answers=str(tmp_path / "answers.parquet"))
    assert [row | {"finish_reason": "given"} for row in sampled] == read(work / "sampled_answer")
    for stage in ("instruct_logps", "reward_logps"):
        assert read(work / stage) == read(own / stage)
    for file in ("dataset/dpo_dataset.parquet", "pairs/pairs.parquet"):
        assert (work / file).read_bytes() == (own / file).read_bytes()


@pytest.mark.families
@pytest.mark.parametrize("name", named(["qwen2_5_vl"]))
def test_settings_of_drawing_do_not_decide_anew_on_which_path_a_model_runs(checkpoints, start, tmp_path, name):
    """Else log-probs of both paths could stand side by side."""
    pair = Pair(checkpoints(name), tmp_path)
    rows = [{"idx": question.idx, "answer": text} for question in
            load_questions(str(tmp_path / "questions.parquet")).rows(range(3)) for text in TEXTS]  # fmt: skip
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"answers": str(tmp_path / "answers.jsonl"), "rank": 1, "stop_after_stage": 1}
    work = start(pair, "work", **flags)
    decided = sorted(file.name for file in (work / "paths").iterdir())
    assert len(decided) == 2
    next((work / "reward_logps").iterdir()).unlink()
    start(pair, "work", **flags, max_new_tokens=5, temperature=0.1)
    assert sorted(file.name for file in (work / "paths").iterdir()) == decided


@pytest.mark.parametrize("name", named(["qwen2_5_vl"]))
def test_a_given_id_that_stands_for_a_picture_leaves_its_question_out(checkpoints, start, tmp_path, name):
    pair = Pair(checkpoints(name), tmp_path)
    model = load_model("auto", str(pair.instruct), device="cpu", dtype="float32")
    first, second, third = (q.idx for q in load_questions(str(tmp_path / "questions.parquet")).rows(range(3)))
    rows = [{"idx": idx, "token_ids": [5 + n, 6]} for idx in (first, second, third) for n in range(2)]
    rows.append({"idx": second, "token_ids": [5, model.banned_token_ids[0]]})
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    work = start(pair, "work", answers=str(tmp_path / "answers.jsonl"), rank=1, stop_after_stage=1)
    assert {row["idx"] for row in read(work / "instruct_logps")} == {first, third}
    from data_engine.store.units import left_out

    [row] = left_out(work)
    assert (row["idx"], row["stage"]) == (second, "instruct_logps")
    assert (
        row["reason"] == f"answer 2 has the id {model.banned_token_ids[0]}, which stands for a picture, film or sound"
    )
