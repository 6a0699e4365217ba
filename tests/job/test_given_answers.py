"""Answers from a file in the place of stage 0: the engine's own, taken out of a run and put in again, and others."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_files import hostile_rows, read, write
from shown import SHOWN
from watched_run import described

import data_engine.demo
from data_engine import load_model
from data_engine.demo.judge import write_questions
from data_engine.errors import UserError
from data_engine.job import model_holder, worker
from data_engine.questions import given_answers
from data_engine.questions.dataset import load_questions
from data_engine.store import units
from data_engine.store.claims import Claims
from data_engine.store.file_hashes import hash_files

DEMO = Path(data_engine.demo.__file__).parent / "checkpoints"
NUM_QUESTIONS = 24
# Most answers of the demo end by themselves; some are cut off here.
DEMO_SETTINGS = {
    "instruct_model_path": str(DEMO / "instruct"), "reward_model_path": str(DEMO / "reward"), "max_new_tokens": 24,
    "sample_k": 6, "rank": 2, "temperature": 1.0, "unit_size": 5,
}  # fmt: skip


def rows_of(folder: Path) -> list[dict]:
    """What any reader of parquet finds in a folder of units."""
    files = sorted(folder.glob("unit-*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()


def without_repeats(rows: list[dict]) -> list[dict]:
    """The first of equal answers to a question: the others do not rank, and a file may not have them."""
    first: dict[tuple, dict] = {}
    for row in rows:
        first.setdefault((row["idx"], row["answer"]), row)
    return [row for row in first.values() if row["answer"].strip()]


def write_jsonl(path: Path, rows: list[dict], *columns: str) -> str:
    path.write_text("".join(json.dumps({name: row[name] for name in ("idx", *columns)}) + "\n" for row in rows))
    return str(path)


def pairs_of(work: Path) -> list[dict]:
    """Without sample_index, which counts repeated answers too, and in nats that are right to six places."""
    names = ("idx", "chosen", "rejected", "status")
    numbers = ("chosen_sum", "rejected_sum", "chosen_avg", "rejected_avg")
    return [{name: row[name] for name in names} | {name: pytest.approx(row[name], abs=1e-6) for name in numbers}
            for row in read(work / "pairs")]  # fmt: skip


def test_answers_are_taken_out_of_a_batch_as_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As OpenAI documents its output: one request that failed, and one that expired.
    choices = [{"index": place, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
               for place, text in enumerate(["A cat.", "É\n🦊", None])]  # fmt: skip
    lines = [
        {"id": "r1", "custom_id": "b", "response": {"status_code": 200, "body": {"choices": choices}}, "error": None},
        {"id": "r2", "custom_id": "a", "response": {"status_code": 400, "body": {"error": {}}}, "error": None},
        {"id": "r3", "custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "x"}},
    ]  # fmt: skip
    (tmp_path / "batch_output.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [shown] = [one.text for one in SHOWN if one.page == "docs/given-answers.md" and one.kind == "python"][:1]
    exec(compile(shown, "docs/given-answers.md", "exec"), {})
    good = hostile_rows()[0]
    write(tmp_path / "questions.parquet", [(name, good[1], good[2]) for name in ("a", "b")])
    facts = given_answers.check_answers("answers.jsonl", load_questions("questions.parquet"))
    assert (facts.rows, facts.empty, facts.questions_by_answers) == (2, 1, {0: 1, 2: 1})
    assert json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[1]) == {"idx": "b", "answer": "É\n🦊"}


def test_answers_of_two_runs_are_put_together_as_the_page_shows(config, goldens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    questions = goldens / "llava/dataset/questions.parquet"
    for seed in (0, 1):
        work_dir = str(tmp_path / f"runs/seed-{seed}")
        assert worker.run(config(questions, work_dir=work_dir, seed=seed, stop_after_stage=0)) == 0
    blocks = [one.text for one in SHOWN if one.page == "docs/given-answers.md" and one.kind == "python"]
    [shown] = [text for text in blocks if "sampled_answer" in text]
    exec(compile(shown, "docs/given-answers.md", "exec"), {})
    both = [row for seed in (0, 1) for row in rows_of(tmp_path / f"runs/seed-{seed}/sampled_answer")]
    names = ("idx", "answer", "token_ids")
    assert pq.read_table("answers.parquet").to_pylist() == [{name: row[name] for name in names} for row in both]
    assert worker.run(config(questions, answers="answers.parquet")) == 0
    used = [(row["idx"], row["token_ids"]) for row in rows_of(tmp_path / "work/sampled_answer")]
    assert sorted(used) == sorted((row["idx"], row["token_ids"]) for row in without_repeats(both))
    with pytest.raises(UserError, match=r"is a folder; .*; docs/given-answers\.md shows how one is made of"):
        worker.run(config(questions, answers="runs/seed-0/sampled_answer", work_dir="other"))


@pytest.fixture(scope="module")
def own(tmp_path_factory, one_thread) -> Path:
    """A folder with questions of the demo, and a run that sampled its answers."""
    from data_engine.config import RunConfig

    folder = tmp_path_factory.mktemp("own")
    write_questions(folder / "questions.parquet", NUM_QUESTIONS, 0)
    paths = {"dataset_path": str(folder / "questions.parquet"), "work_dir": str(folder / "work")}
    assert worker.run(RunConfig(**DEMO_SETTINGS | paths | {"threads": 1})) == 0
    return folder


@pytest.mark.slow
def test_own_answers_taken_out_as_text_and_put_in_again_give_the_same_pairs(own, config, tmp_path):
    sampled = without_repeats(rows_of(own / "work/sampled_answer"))
    file = write_jsonl(tmp_path / "answers.jsonl", sampled, "answer")
    assert worker.run(config(own / "questions.parquet", **DEMO_SETTINGS, answers=file)) == 0
    work = tmp_path / "work"
    given = rows_of(work / "sampled_answer")
    assert [(row["idx"], row["answer"]) for row in given] == [(row["idx"], row["answer"]) for row in sampled]
    assert {row["finish_reason"] for row in given} == {"given"}
    assert {row["token_ids"] for row in given} == {None}

    model = load_model(None, str(DEMO / "instruct"), device="cpu", dtype="float32")
    asked = {question.idx: question.conversation for question in
             load_questions(str(own / "questions.parquet")).rows(range(NUM_QUESTIONS))}  # fmt: skip
    otherwise = [row for row in sampled if model.encode_answer(asked[row["idx"]], row["answer"]) != row["token_ids"]]
    print(f"{len(otherwise)} of {len(sampled)} texts are encoded to other ids")
    # Those that max_new_tokens cut off: as text they have an end.
    assert {row["finish_reason"] for row in otherwise} <= {"length"}
    assert 0 < len(otherwise) < len(sampled) / 4
    changed = {row["idx"] for row in otherwise}
    expected, found = (
        [pair | {"status": None} for pair in pairs_of(one) if pair["idx"] not in changed]
        for one in (own / "work", work)
    )
    assert len(expected) > 20
    assert found == expected


def golden_run(config, goldens, tmp_path) -> tuple[Path, list[dict]]:
    """A run that sampled, and its answers, of which no two are alike."""
    assert worker.run(config(goldens / "llava/dataset/questions.parquet", work_dir=str(tmp_path / "own"))) == 0
    sampled = rows_of(tmp_path / "own/sampled_answer")
    assert without_repeats(sampled) == sampled
    return tmp_path / "own", sampled


@pytest.mark.parametrize("columns", [("token_ids",), pytest.param(("answer", "token_ids"), marks=pytest.mark.slow)])
def test_own_token_ids_put_in_again_give_the_same_log_probs_and_dataset(config, goldens, tmp_path, columns):
    """Random models: their answers are of ids that no text would be encoded to."""
    own, sampled = golden_run(config, goldens, tmp_path)
    # All first answers, then all second ones: only the order of the answers to one question counts.
    rows = sorted(sampled, key=lambda row: row["sample_index"])
    table = pa.table({name: [row[name] for row in rows] for name in ("idx", *columns)})
    pq.write_table(table, tmp_path / "answers.parquet", row_group_size=5)
    questions = goldens / "llava/dataset/questions.parquet"
    assert worker.run(config(questions, answers=str(tmp_path / "answers.parquet"))) == 0
    work = tmp_path / "work"
    assert [row | {"finish_reason": "given"} for row in sampled] == rows_of(work / "sampled_answer")
    for stage in ("instruct_logps", "reward_logps"):
        assert rows_of(work / stage) == rows_of(own / stage)
    for file in ("dataset/dpo_dataset.parquet", "pairs/pairs.parquet"):
        assert (work / file).read_bytes() == (own / file).read_bytes()


def test_the_units_of_another_run_are_read_as_they_are(config, goldens, tmp_path):
    """With their columns sample_index and finish_reason, which nothing reads."""
    _, sampled = golden_run(config, goldens, tmp_path)
    pq.write_table(pa.Table.from_pylist(sampled), tmp_path / "answers.parquet")
    questions = goldens / "llava/dataset/questions.parquet"
    assert worker.run(config(questions, answers=str(tmp_path / "answers.parquet"), stop_after_stage=0)) == 0
    assert [row | {"finish_reason": "given"} for row in sampled] == rows_of(tmp_path / "work/sampled_answer")


@pytest.fixture
def questions(tmp_path) -> Path:
    """Five questions that can be used, and one whose picture is broken."""
    good = hostile_rows()[0]
    rows = [(name, good[1], good[2]) for name in ("a", "b", "c", "d", "e")]
    return write(tmp_path / "questions.parquet", [*rows[:2], ("broken", "What is it?", b"no picture"), *rows[2:]])


def given(tmp_path: Path, **answers: list[str]) -> str:
    rows = [{"idx": idx, "answer": answer} for idx, several in answers.items() for answer in several]
    return write_jsonl(tmp_path / "answers.jsonl", rows, "answer")


FIVE = {"a": ["A cat.", "A dog."], "b": ["One.", "Two.", "Three.", "Four.", "Five."], "broken": ["It is.", "No."],
        "c": ["Alone."], "e": ["Red", "Blue", "Green"]}  # fmt: skip


def test_any_number_of_answers_a_question_goes_through_all_stages(config, questions, tmp_path, capsys):
    """Neither sample_k nor the temperature has a meaning then."""
    file = given(tmp_path, **FIVE)
    assert worker.run(config(questions, answers=file, rank=1, temperature=0.0, sample_k=2, debug=True)) == 0
    work = tmp_path / "work"
    rows = rows_of(work / "sampled_answer")
    assert [(row["idx"], row["sample_index"], row["answer"]) for row in rows] == [
        (idx, index, answer) for idx in "abce" for index, answer in enumerate(FIVE[idx])
    ]
    # A text answer is scored with its end, in as many tokens by either model.
    for stage in ("instruct_logps", "reward_logps"):
        assert [(row["idx"], row["sample_index"]) for row in rows_of(work / stage)] == [
            (row["idx"], row["sample_index"]) for row in rows
        ]
    assert {row["idx"] for row in read(work / "pairs")} == {"a", "b", "e"}
    left_out = {row["idx"]: row["reason"] for row in units.left_out(work)}
    assert left_out.keys() == {"broken", "d"}
    assert left_out["d"] == "no answer to it was given"
    facts = [units.read_unit_facts(work, "sampled_answer", unit)[0] for unit in (0, 1)]
    then = [question.digest for question in load_questions(str(questions)).rows(range(6))]
    assert [digest for one in facts for digest in one["rows"]] == [*then[:2], None, then[3], None, then[5]]
    told = capsys.readouterr()
    assert told.err.count("off-policy") == 1
    assert "13 answers to 5 of 6 questions" in told.err
    assert "1 of 5 questions with answers have no more of them than rank, 1" in told.err
    assert "temperature" not in told.err
    assert "quarantined                 2" in told.out
    assert "2/2" in described(work, 0)
    # Both models encode a text in the same way, so that their log-probs match token by token.
    assert all(row["min"] is not None for row in json.loads((work / "debug/rewards.json").read_text()))


def test_answers_that_are_too_long_to_score_are_left_out_alone_and_told(config, questions, tmp_path, capsys):
    """Of a question that has others, and of one that has none."""
    long, longer = ("word " * number for number in (3000, 4000))
    file = given(tmp_path, a=["A cat.", long, "A dog.", longer], b=["One.", "Two."], c=[long, longer])
    assert worker.run(config(questions, answers=file, rank=1)) == 0
    work, out = tmp_path / "work", capsys.readouterr().out
    for stage in ("instruct_logps", "reward_logps"):
        assert [(row["idx"], row["sample_index"]) for row in rows_of(work / stage)] == [
            ("a", 0), ("a", 2), ("b", 0), ("b", 1)
        ]  # fmt: skip
    assert {row["idx"] for row in read(work / "pairs")} == {"a", "b"}
    rows = list(map(json.loads, (work / "logs/quarantine.jsonl").read_text().splitlines()))
    told = {(row["idx"], row.get("sample_index")): row for row in rows}
    assert len(told) == len(rows)
    # Three had no answer of those that are here.
    assert told.keys() == {("a", 1), ("a", 3), ("c", None), *((idx, None) for idx in ("broken", "d", "e"))}
    for key in (("a", 1), ("a", 3), ("c", None)):
        assert told[key]["stage"] == "instruct_logps"
        assert told[key]["reason"].startswith("too long to score: prompt of ")
    # Questions, answers, and those of them that were never scored.
    assert [int(re.search(rf"{name} +(\d+)", out)[1]) for name in ("quarantined", "answers", "not_scored")] == [4, 8, 4]
    assert re.search(r"instruct_logps, answers +2 +a +too long to score", out)


def test_a_text_that_is_not_that_of_the_ids_beside_it_is_left_out_with_its_question(config, questions, tmp_path):
    """The ids would be rewarded, and the text trained on. Ends and white space may differ."""
    model = load_model(None, str(DEMO / "instruct"), device="cpu", dtype="float32")
    asked = next(load_questions(str(questions)).rows(range(1))).conversation
    said = [model.encode_answer(asked, text) for text in ("A red circle.", "A blue square.")]
    texts = {"a": ["A red circle.", "A blue square."], "b": ["A blue square.", "A red circle."],
             "c": [" A red\ncircle.</s>", "Ａ blue"], "e": [None, "A blue square."]}  # fmt: skip
    rows = [
        {"idx": idx, "answer": text, "token_ids": ids}
        for idx, two in texts.items()
        for text, ids in zip(two, said, strict=True)
    ]
    file = write_jsonl(tmp_path / "answers.jsonl", rows, "answer", "token_ids")
    settings = DEMO_SETTINGS | {"answers": file, "rank": 1, "stop_after_stage": 0}
    assert worker.run(config(questions, **settings)) == 0
    found = rows_of(tmp_path / "work/sampled_answer")
    assert [(row["idx"], row["answer"]) for row in found] == [
        ("a", "A red circle."), ("a", "A blue square."), ("c", " A red\ncircle.</s>"), ("c", "Ａ blue"),
        ("e", "A red circle."), ("e", "A blue square."),
    ]  # fmt: skip
    reasons = {row["idx"]: row["reason"] for row in units.left_out(tmp_path / "work")}
    assert reasons["b"] == (
        'the text "A blue square." is not that of the token_ids beside it, "A red circle."; '
        "give texts alone where they were changed"
    )


def test_no_model_is_loaded_for_given_answers(config, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: pytest.fail("no model is needed"))
    assert worker.run(config(questions, answers=given(tmp_path, **FIVE), rank=1, stop_after_stage=0)) == 0
    assert len(rows_of(tmp_path / "work/sampled_answer")) == 11


def test_a_copy_that_another_process_made_meanwhile_stays_for_whoever_reads_it(questions, tmp_path, monkeypatch):
    """This one was stopped, and its claim taken over, before it moved its own copy in."""
    move_in, there, work = given_answers.move_in_once, [], tmp_path / "work"

    def late(made, folder):
        shutil.copytree(made, folder)
        there.append(folder.stat().st_ino)
        move_in(made, folder)

    monkeypatch.setattr(given_answers, "move_in_once", late)
    path, asked = given(tmp_path, **FIVE), load_questions(str(questions))
    found = given_answers.GivenAnswers.of(work, path, asked, hash_files, Claims(work, 0))
    assert found.facts.most == max(map(len, FIVE.values()))
    assert [folder.stat().st_ino for folder in (work / "answers").iterdir()] == there


def test_a_copy_for_the_same_questions_in_another_order_is_another_one(tmp_path):
    """As of a start that was refused, before its first unit, for a dataset that is mended by then."""
    rows = [{"idx": idx, "answer": f"{idx} {number}"} for idx in ("a", "b", "c") for number in range(2)]
    path, work = write_jsonl(tmp_path / "answers.jsonl", rows, "answer"), tmp_path / "work"
    for order in ("abc", "cab"):
        asked = load_questions(str(write(tmp_path / f"{order}.parquet", [(idx, "What is it?", None) for idx in order])))
        found = given_answers.GivenAnswers.of(work, path, asked, hash_files, Claims(work, 0))
        texts = [[answer.text for answer in answers] for answers in found.of_rows(range(3))]
        assert texts == [[f"{idx} 0", f"{idx} 1"] for idx in order]


def test_a_question_without_an_answer_is_no_bad_row(config, tmp_path):
    """Not even where the whole first unit has none."""
    good = hostile_rows()[0]
    questions = write(tmp_path / "questions.parquet", [(f"q{n}", good[1], good[2]) for n in range(6)])
    file = given(tmp_path, q5=["One.", "Two."])
    assert worker.run(config(questions, answers=file, rank=1, on_bad_row="error", unit_size=2)) == 0
    assert {row["idx"] for row in read(tmp_path / "work/pairs")} == {"q5"}
    broken = write(tmp_path / "broken.parquet", [("q4", good[1], good[2]), ("q5", good[1], b"no picture")])
    with pytest.raises(worker.UserError, match="row 'q5' cannot be used"):
        worker.run(config(broken, answers=file, rank=1, on_bad_row="error", work_dir=str(tmp_path / "other")))


def test_answers_to_questions_beyond_the_limit_are_not_used(config, questions, tmp_path, capsys):
    assert worker.run(config(questions, answers=given(tmp_path, **FIVE), rank=1, limit=2)) == 0
    assert {row["idx"] for row in rows_of(tmp_path / "work/sampled_answer")} == {"a", "b"}
    assert "7 answers to 2 of 2 questions; to questions beyond --limit: 6 answers" in capsys.readouterr().err
