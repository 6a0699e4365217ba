"""Runs over answers with none, one, two and unfinished thoughts: what is scored, paired and exported."""

import importlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_files import read

from data_engine import exports, load_model, score_answers, stages
from data_engine.job import worker
from data_engine.preferences.funnel import Funnel
from data_engine.questions.dataset import load_questions
from data_engine.scoring.logprobs import plain_token_logps

# What is given, and its final answer.
ANSWERS = {
    "A red bus.": "A red bus.",
    "<think>It may be a cat.</think>\n\nA small cat.": "A small cat.",
    "<think>a dog?</think>A dog. <think>No, two.</think> Two dogs.\n": "Two dogs.",
    "A thought whose beginning the prompt had.</think>A boat.": "A boat.",
    "◁think▷Hm.◁/think▷A tall house.": "A tall house.",
    "<think>I do not know, but it goes on": None,
    "<think>Done</think>A bird. <think>But no": None,
    "<think>All is said.</think>": "",
    "<think>A bus again.</think>A red bus.": "A red bus.",
    "A blue ball.": "A blue ball.",
    "One old man.": "One old man.",
    "Four.": "Four.",
}
NOT_RANKED = {5: "unfinished_thought", 6: "unfinished_thought", 7: "empty", 8: "duplicate"}
FINAL = {text for text in ANSWERS.values() if text}
NUM_QUESTIONS = 4


@pytest.fixture(scope="module")
def given(made_once, goldens, tmp_path_factory) -> Path:
    """A finished run over them, exported in every format."""
    dataset = goldens / "llava/dataset/questions.parquet"
    rows = [
        {"idx": idx, "answer": text} for idx in load_questions(str(dataset)).idx[:NUM_QUESTIONS] for text in ANSWERS
    ]
    answers = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made_once(
        dataset, answers=str(answers), limit=NUM_QUESTIONS, debug=True, rank=3, export=",".join(exports.EXPORTS)
    )


def test_given_texts_go_through_scoring_pairing_and_every_export_by_their_final_answers(given):
    sampled = read(given / "sampled_answer")
    assert [row["answer"] for row in sampled] == list(ANSWERS.values()) * NUM_QUESTIONS
    assert [row["thought"] for row in sampled[:2]] == [None, "<think>It may be a cat.</think>\n\n"]
    assert [row["thought"] for row in sampled[5:7]] == list(ANSWERS)[5:7]
    for stage in ("instruct_logps", "reward_logps"):
        assert {row["sample_index"] for row in read(given / stage)} == {*range(12)} - {5, 6}
    told = {row["sample_index"]: row["not_ranked"] for row in json.loads((given / "debug/rewards.json").read_text())}
    assert {index: reason for index, reason in told.items() if reason} == NOT_RANKED
    funnel = Funnel.from_json(pq.read_schema(given / "pairs/pairs.parquet").metadata[b"funnel"].decode())
    expected = {"unfinished_thought": 2, "empty": 1, "duplicate": 1}
    assert funnel.not_ranked == {reason: number * NUM_QUESTIONS for reason, number in expected.items()}
    for row in read(given / "pairs"):
        assert {row["chosen"], row["rejected"]} <= FINAL
        # Words of the final answer: "A small cat ." and the like.
        assert all(row[f"{side}_words"] == 1 + len(row[side].split()) for side in ("chosen", "rejected"))
    assert read(given / "dataset")
    for name in exports.EXPORTS:
        _require_final_answers(name, given / "exports" / name)
    assert "unfinished_thought" in (given / "report/index.html").read_text()


def _require_final_answers(name: str, folder: Path) -> None:
    reader = importlib.import_module(f"export_readers.{name.replace('-', '_')}")
    rows = reader.read(folder)
    found = {row[side] for row in rows for side in ("chosen", "rejected", "answer") if side in row}
    if name == "scored":
        assert found == {*ANSWERS.values()}
        assert {row["sample_index"]: row["not_ranked"] for row in rows if row["not_ranked"]} == NOT_RANKED
        return
    # Log-probs behind a thought are none that RLAIF-V's trainer would compute.
    expected = FINAL if name != "rlaif-v-logps" else {text for text in ANSWERS if "think" not in text}
    assert found
    assert found <= expected - {"A thought whose beginning the prompt had.</think>A boat."}
    for file in folder.rglob("*"):
        assert not file.is_file() or file.suffix in (".png", ".jpg") or b"think" not in file.read_bytes(), file


def test_a_given_texts_final_tokens_are_scored_behind_its_thought(given, instruct, golden_images):
    """Against one forward of the whole text; golden_images are the pictures of the first questions."""
    sampled = {(row["idx"], row["sample_index"]): row for row in read(given / "sampled_answer")}
    scored = {(row["idx"], row["sample_index"]): row for row in read(given / "instruct_logps")}
    questions = _questions(given)
    question, picture = questions[0], golden_images[0]
    for index, text in enumerate(ANSWERS):
        key = (question.idx, index)
        if sampled[key]["answer"] is None:
            assert key not in scored
            continue
        whole = instruct.encode_answer(question.conversation, text.rstrip())
        behind = text.rstrip().rpartition("</think>")[2].rpartition("◁/think▷")[2]
        prompt = instruct.prompt(question.conversation, [picture], True, 64)
        expected = plain_token_logps(instruct, prompt, whole)
        found = scored[key]["token_logps"]
        # By the tokenizer alone: how many tokens the final answer and its end are.
        assert instruct.text(whole[-len(found) :]) == behind.strip()
        assert found == pytest.approx(expected[-len(found) :].tolist(), abs=1e-4)
        assert scored[key]["sum"] == pytest.approx(sum(found), abs=1e-5)
        assert scored[key]["mean"] == pytest.approx(sum(found) / len(found), abs=1e-5)
        # The same by the public call, which takes the text as it is.
        [alone] = score_answers(instruct, picture, question.question, [text.rstrip()])
        assert alone.tolist() == pytest.approx(found, abs=1e-5)


def _questions(work: Path) -> list:
    path = json.loads((work / "run.json").read_text())["config"]["dataset_path"]
    return list(load_questions(path).rows(range(NUM_QUESTIONS)))


def test_a_text_that_is_unfinished_has_no_counted_token(instruct, golden_images):
    found = score_answers(instruct, golden_images[0], "What is it?", ["<think>Hm", "<think>Hm</think>Two."])
    assert [len(one) for one in found] == [0, len(found[1])]
    assert len(found[1]) > 1


def test_own_answers_with_thoughts_put_in_again_keep_their_ids_texts_and_thoughts(config, goldens, tmp_path, instruct):
    """Ids beside texts that are cut already, as a run leaves them, and ids alone."""
    dataset = goldens / "llava/dataset/questions.parquet"
    questions = list(load_questions(str(dataset)).rows(range(NUM_QUESTIONS)))
    rows = [
        {"idx": question.idx, "answer": final, "token_ids": instruct.encode_answer(question.conversation, text)}
        for question in questions
        for text, final in list(ANSWERS.items())[:7]
    ]
    found = []
    for name, columns in (("both", ("answer", "token_ids")), ("ids", ("token_ids",))):
        lines = [{"idx": row["idx"], **{column: row[column] for column in columns}} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = config(
            dataset, answers=str(tmp_path / f"{name}.jsonl"), limit=NUM_QUESTIONS, work_dir=str(tmp_path / name)
        )
        assert worker.run(settings) == 0
        sampled = read(tmp_path / name / "sampled_answer")
        assert [row["token_ids"] for row in sampled] == [row["token_ids"] for row in rows]
        assert [row["answer"] for row in sampled] == [row["answer"] for row in rows]
        for row in sampled:
            if row["answer"] is not None:
                counted = row["token_ids"][row["thought_tokens"] or 0 :]
                assert instruct.text(counted) == row["answer"]
        scored = read(tmp_path / name / "instruct_logps")
        lengths = {(row["idx"], row["sample_index"]): len(row["token_ids"]) - (row["thought_tokens"] or 0)
                   for row in sampled if row["answer"] is not None}  # fmt: skip
        assert {(row["idx"], row["sample_index"]): len(row["token_logps"]) for row in scored} == lengths
        found.append((sampled, scored, read(tmp_path / name / "dataset")))
    assert found[0] == found[1]


def test_a_run_in_which_no_thought_ends_says_so_and_does_not_fail(config, goldens, tmp_path, capsys):
    dataset = goldens / "llava/dataset/questions.parquet"
    rows = [{"idx": idx, "answer": f"<think>{n}"} for idx in load_questions(str(dataset)).idx for n in range(3)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # 4: done, and nothing could be written.
    assert worker.run(config(dataset, answers=str(tmp_path / "answers.jsonl"))) == 4
    assert f"{len(rows)} answers not ranked: unfinished_thought" in capsys.readouterr().err


def test_what_tells_where_a_given_answers_thought_ends_is_bound():
    assert {"chat_template", "chat_template_kwargs"} <= {*stages.GIVEN.bound}


def test_a_model_without_thoughts_has_no_column_of_them(config, goldens, tmp_path):
    assert worker.run(config(goldens / "llava/dataset/questions.parquet")) == 0
    columns = ["idx", "sample_index", "answer", "token_ids", "finish_reason"]
    for file in (tmp_path / "work/sampled_answer").iterdir():
        assert pq.read_schema(file).names == columns


def test_models_of_other_tokenizers_score_the_final_answer_behind_the_thought_as_text(
    config, goldens, tmp_path, omni_reward, golden_images
):
    """The reward model writes the thought in its own tokens, and counts those behind the mark."""
    dataset = goldens / "llava/dataset/questions.parquet"
    rows = [{"idx": idx, "answer": text} for idx in load_questions(str(dataset)).idx[:2] for text in ANSWERS]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(
        dataset, answers=str(tmp_path / "answers.jsonl"), limit=2,
        reward_model_path=str(goldens / "omnilmm/reward"), stop_after_stage=1,
    )  # fmt: skip
    assert worker.run(settings) == 0
    scored = {(row["idx"], row["sample_index"]): row["token_logps"] for row in read(tmp_path / "work/reward_logps")}
    question = next(iter(load_questions(str(dataset)).rows(range(1))))
    model = load_model(None, str(goldens / "omnilmm/reward"), device="cpu", dtype="float32")
    text = list(ANSWERS)[1]
    whole = model.encode_answer(question.conversation, text)
    prompt = model.prompt(question.conversation, [golden_images[0]], True, 64)
    found = scored[question.idx, 1]
    assert model.text(whole[-len(found) :]) == "A small cat."
    assert found == pytest.approx(plain_token_logps(model, prompt, whole)[-len(found) :].tolist(), abs=1e-4)
