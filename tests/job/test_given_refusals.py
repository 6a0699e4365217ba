"""Files of answers that cannot be used: refused by name, by `run` as by `validate`, with nothing half-written."""

import gzip
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from answer_files import EMPTY, GOOD, jsonl, parquet, three_questions
from validated import checked

from data_engine.commands import main
from data_engine.config import Draft
from data_engine.errors import UserError
from data_engine.job import given, worker
from data_engine.models.native.llava import Llava
from data_engine.planning.checks import require_all
from data_engine.questions.dataset import load_questions
from data_engine.questions.given_answers import check_answers


@pytest.fixture
def questions(tmp_path) -> Path:
    return three_questions(tmp_path)


def refusal(config, questions: Path, answers: str, **changes: object) -> str:
    """What both commands say; `run` leaves no unit, no run.json and no copy of the answers."""
    flags = {"answers": answers, "rank": 1} | changes
    with pytest.raises(UserError) as validated:
        checked(config(questions, **flags))
    with pytest.raises(UserError) as caught:
        worker.run(config(questions, **flags))
    assert str(caught.value) == str(validated.value)
    work = Path(config(questions, **flags).work_dir)
    left = {path.name for path in work.iterdir()} if work.is_dir() else set()
    assert left <= {"claims", "hashes", "logs"}
    assert not (work / "claims").is_dir() or not list((work / "claims").iterdir())
    return str(caught.value).replace(answers, "FILE")


BAD_ROWS = {
    "unknown key": ({"idx": "a", "anwser": "x"}, 'line 5 has the unknown column "anwser"; did you mean "answer"?'),
    "id of the question": (
        {"question_id": "a", "answer": "x"},
        'line 5 has the unknown column "question_id"; if it holds the idx of the question, call it "idx" (known: idx,',
    ),
    "id beside idx": ({"idx": "a", "id": "r1", "answer": "x"}, 'line 5 has the unknown column "id"; take it out'),
    "batch": (
        {"id": "r1", "custom_id": "a", "response": {"body": {}}, "error": None},
        "line 5 is of the output of a batch of an API; docs/given-answers.md shows how answers are taken out of it",
    ),
    "no JSON": (b'{"idx": "a"', "line 5: not JSON: "),
    "no object": (["a", "x"], "line 5: not an object"),
    "key twice": (b'{"idx": "a", "answer": "x", "answer": "y"}', "line 5: a key is there more than once"),
    "no idx": ({"answer": "x"}, "line 5: idx is null; expected text"),
    "idx a number": ({"idx": 7, "answer": "x"}, "line 5: idx is 7; expected text, as the idx of the dataset"),
    "idx true": ({"idx": True, "answer": "x"}, "line 5: idx is true; expected text"),
    "number": ({"idx": "a", "answer": 7}, "line 5: answer is 7; expected text"),
    "list": ({"idx": "a", "answer": ["x"]}, 'line 5: answer is ["x"]; expected text; write a row for each answer'),
    "object": ({"idx": "a", "answer": {"text": ["x"]}}, 'line 5: answer is {"text": ["x"]}; expected text\n'),
    "pair": (
        {"idx": "a", "chosen": "x", "rejected": "y"},
        'line 5 has the unknown column "chosen"; write a row for each answer, with its text in "answer" (known: idx,',
    ),
    "half a pair": (b'{"idx": "a", "answer": "\\ud800"}', "line 5: answer is not text in UTF-8"),
    "latin-1": ('{"idx": "a", "answer": "é"}'.encode("latin-1"), "line 5: not JSON: 'utf-8' codec"),
    "no ids": ({"idx": "a", "answer": "x", "token_ids": []}, "line 5: token_ids is empty beside an answer"),
    "ids text": ({"idx": "a", "token_ids": "x"}, 'line 5: token_ids is "x"; expected whole numbers'),
    "ids true": ({"idx": "a", "token_ids": [5, True]}, "line 5: token_ids is [5, true]; expected whole numbers"),
    "ids 1.0": ({"idx": "a", "token_ids": [5, 1.0]}, "line 5: token_ids is [5, 1.0]; expected whole numbers"),
    "negative": ({"idx": "a", "token_ids": [5, -1]}, "line 5: token_ids has -1, which is no id of a token"),
    "64 bits": ({"idx": "a", "token_ids": [2**40]}, f"line 5: token_ids has {2**40}, which is no id of a token"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_cannot_be_used_is_named(questions, tmp_path, name):
    row, told = BAD_ROWS[name]
    with pytest.raises(UserError) as caught:
        check_answers(jsonl(tmp_path, *GOOD, row), load_questions(str(questions)))
    assert f'answers.jsonl", {told}' in f"{caught.value}\n"


def test_lists_of_answers_in_parquet_are_told_so(questions, tmp_path):
    with pytest.raises(UserError, match=r'"answer" must be text, got list<.*>; write a row for each answer$'):
        check_answers(parquet(tmp_path, idx=["a"], answer=[["x", "y"]]), load_questions(str(questions)))


def test_an_array_of_answers_becomes_lines_by_the_command_that_is_told(questions, tmp_path):
    (tmp_path / 'Jane\'s "own" $all.json').write_text(json.dumps(GOOD, indent=1))
    (tmp_path / "answers.jsonl").write_text("those of another file")
    with pytest.raises(UserError) as caught:
        check_answers(str(tmp_path / 'Jane\'s "own" $all.json'), load_questions(str(questions)))
    told, _, command = str(caught.value).partition(" by its name; ")
    assert told.endswith("must be a parquet, .jsonl or .jsonl.gz file,")
    program = [sys.executable, *shlex.split(command)[1:]]
    subprocess.run(program, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    lines = (tmp_path / 'Jane\'s "own" $all.jsonl').read_text().splitlines()
    assert list(map(json.loads, lines)) == GOOD
    assert (tmp_path / "answers.jsonl").read_text() == "those of another file"


def test_lines_of_answers_in_a_file_of_another_name_are_told_what_it_must_be(questions, tmp_path):
    (tmp_path / "all.json").write_text("".join(f"{json.dumps(row)}\n" for row in GOOD))
    with pytest.raises(
        UserError, match=r"by its name; if each of its lines is an object, let its name end with \.jsonl$"
    ):
        check_answers(str(tmp_path / "all.json"), load_questions(str(questions)))


def test_a_bad_row_stops_a_run_before_anything_is_written(config, questions, tmp_path):
    told = refusal(config, questions, jsonl(tmp_path, *GOOD, {"idx": "a", "answer": 7}))
    assert told == 'answers "FILE", line 5: answer is 7; expected text'


def test_an_unknown_idx_is_named_with_how_many_there_are(config, questions, tmp_path):
    unknown = [{"idx": f"x{number}", "answer": "x"} for number in range(7)]
    told = refusal(config, questions, jsonl(tmp_path, *GOOD, *unknown))
    assert "the dataset has no question of the idx of 7 rows: " in told
    assert '"x0" in line 5, "x1" in line 6, "x2" in line 7, "x3" in line 8, "x4" in line 9, ...' in told
    # With --limit too, where only rows that the dataset has are passed over.
    assert "of 7 rows" in refusal(config, questions, str(tmp_path / "answers.jsonl"), limit=1)


def test_a_file_without_an_answer_that_can_be_used_is_refused(config, questions, tmp_path):
    assert refusal(config, questions, jsonl(tmp_path, b"")) == 'answers "FILE" has no answers'
    told = refusal(config, questions, jsonl(tmp_path, {"idx": "c", "answer": "x"}), limit=2)
    assert told == 'answers "FILE" has no answers to the first 2 questions, which --limit leaves'
    told = refusal(config, questions, jsonl(tmp_path, *EMPTY))
    assert told == 'answers "FILE" has no answers; not used: 3 empty'
    assert refusal(
        config, questions, parquet(tmp_path, idx=pa.array([], pa.string()), answer=pa.array([], pa.string()))
    )


def test_a_file_that_cannot_make_a_pair_is_refused(config, questions, tmp_path):
    one = [{"idx": idx, "answer": "x"} for idx in ("a", "b", "c")]
    assert "one answer a question; a pair needs two" in refusal(config, questions, jsonl(tmp_path, *one))
    told = refusal(config, questions, jsonl(tmp_path, *one, *one))
    assert told.endswith("a pair needs two; not used: 3 repeated for their question")
    told = refusal(config, questions, jsonl(tmp_path, *GOOD), rank=3, sample_k=2)
    assert told == 'rank must be at most the number of answers that a question has, 2 in answers "FILE", got 3'
    by_none = config(questions, answers=jsonl(tmp_path, *GOOD), rank=3, strategy="best_worst", sample_k=2)
    checked(by_none)
    facts = check_answers(by_none.answers, load_questions(str(questions)))
    assert not [line for line in facts.warnings(by_none) if "rank" in line]


@pytest.mark.parametrize(("rank", "mend"), [(1, "give more answers"), (2, "lower --rank, or give more answers")])
def test_questions_with_too_few_answers_for_a_pair_are_warned_of_by_validate(config, questions, tmp_path, rank, mend):
    """A run would have them scored for hours first."""
    answers = [{"idx": "a", "answer": f"A cat, {at}."} for at in range(3)]
    answers += [{"idx": "b", "answer": f"A dog, {at}."} for at in range(rank)]
    flags = config(questions, answers=jsonl(tmp_path, *answers), rank=rank)
    found = require_all(Draft(flags, [], frozenset()))
    assert [line for line in found.warnings if "rank" in line] == [
        f"1 of 2 questions with answers have no more of them than rank, {rank}: each is both among the best and among "
        f"the worst then, and makes no pair; {mend}"
    ]
    assert [line for line in found.warnings if "off-policy" in line]


def test_ids_of_another_vocabulary_are_refused(config, questions, tmp_path, goldens):
    size = json.loads((goldens / "llava/instruct/config.json").read_text())["vocab_size"]
    good = [{"idx": "a", "token_ids": [size - 1]}, {"idx": "a", "token_ids": [5]}]
    assert check_answers(jsonl(tmp_path, *good), load_questions(str(questions))).largest_id == size - 1
    told = refusal(config, questions, jsonl(tmp_path, *good, {"idx": "b", "token_ids": [7, size]}))
    assert f"line 3: token_ids has {size}, and the vocabulary of the instruct model has {size} ids" in told


def test_a_model_of_another_vocabulary_says_nothing_of_the_ids(config, questions, tmp_path):
    """The answers go over to it as text. Tables of one vocabulary may differ in size: the smallest counts."""
    answers = jsonl(tmp_path, {"idx": "a", "answer": "x", "token_ids": [600]}, {"idx": "a", "answer": "y"})
    run, asked = config(questions, answers=answers, rank=1), load_questions(str(questions))
    facts = check_answers(answers, asked)
    model = lambda vocabulary, size: SimpleNamespace(vocabulary=vocabulary, sizes={"vocab_size": size})  # noqa: E731
    given._check(facts, run, asked, {"instruct": model("a", 1000), "reward": model("b", 500)})
    with pytest.raises(UserError, match="the vocabulary of the instruct model has 500 ids"):
        given._check(facts, run, asked, {"instruct": model("a", 1000), "reward": model("a", 500)})


def test_a_family_that_cannot_write_ids_as_text_without_its_weights_says_what_to_do(
    config, questions, tmp_path, monkeypatch
):
    side = Llava.text_side
    monkeypatch.setattr(Llava, "text_side", lambda *a, **b: side(*a, **b)._replace(text=None))
    ids = [{"idx": "a", "token_ids": [5]}, {"idx": "a", "token_ids": [6]}]
    told = refusal(config, questions, jsonl(tmp_path, *ids))
    assert "rows with token_ids alone, which the family llava cannot write as text" in told
    both = [row | {"answer": str(row["token_ids"])} for row in ids]
    assert worker.run(config(questions, answers=jsonl(tmp_path, *both), rank=1)) == 0


FILES = {
    "missing": (None, b"", "cannot be read: No such file or directory"),
    "long name": (None, b"x" * 300, "cannot be read: File name too long"),
    "csv": ("answers.csv", b"idx,answer\na,x\n", "must be a parquet, .jsonl or .jsonl.gz file"),
    "no parquet": ("answers.parquet", b"idx", "and this one is no parquet file"),
    "cut off": ("answers.parquet", b"PAR1\x00\x00", "is cut off, broken or cannot be read"),
    "no gzip": ("answers.jsonl.gz", b'{"idx": "a"}\n', "is cut off, broken or cannot be read"),
    "cut gzip": ("answers.jsonl.gz", gzip.compress(np.random.default_rng(0).bytes(999))[:500], "not JSON|is cut off"),
    "pointer": ("answers.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "array": ("answers.jsonl", b'[{"idx": "a", "answer": "x"}]\n', "line 1: not an object; write one"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_refused(config, questions, tmp_path, name):
    file, content, told = FILES[name]
    if file:
        (tmp_path / file).write_bytes(content)
    found = refusal(config, questions, str(tmp_path / (file or content.decode() or "answers.jsonl")))
    assert any(part in found for part in told.split("|"))


def test_a_folder_is_refused(config, questions, tmp_path):
    assert "is a folder; name one parquet or .jsonl file" in refusal(
        config, questions, str(tmp_path), work_dir=str(tmp_path / "w")
    )


def test_a_pipe_is_refused_at_once(config, questions, tmp_path):
    os.mkfifo(tmp_path / "answers.jsonl")
    assert "is no file but a pipe or a device" in refusal(config, questions, str(tmp_path / "answers.jsonl"))


COLUMNS = {
    "unknown": ({"idx": ["a"], "note": ["x"]}, 'the unknown column "note"; take it out (known: idx, answer,'),
    "called elsewhere": (
        {"idx": ["a"], "response": ["x"]}, 'unknown column "response"; if it holds the answers, call it "answer" (known'
    ),
    "beside the answers": ({"idx": ["a"], "answer": ["x"], "response": ["x"]}, 'column "response"; take it out (known'),
    "scores": ({"idx": ["a"], "answer": ["x"], "score": [0.5]}, 'column "score"; scores go into the dataset, where a'),
    "misspelled": ({"idx": ["a"], "answers": ["x"]}, 'the unknown column "answers"; did you mean "answer"?'),
    "no idx": ({"answer": ["x"]}, 'needs the column "idx", and "answer" or "token_ids"; columns: answer'),
    "no answer": ({"idx": ["a"]}, 'needs the column "idx", and "answer" or "token_ids"; columns: idx'),
    "idx floats": ({"idx": [1.0], "answer": ["x"]}, 'column "idx" must be integer or text, got double'),
    "idx integers": ({"idx": [1], "answer": ["x"]}, "row 0 (counted from 0): idx is 1; expected text"),
    "idx null": ({"idx": ["a", None], "answer": ["x", "y"]}, "row 1 (counted from 0): idx is null; expected text"),
    "numbers": ({"idx": ["a"], "answer": [1]}, 'column "answer" must be text, got int64'),
    "no UTF-8": ({"idx": ["a"], "answer": [b"\xff"]}, "row 0 (counted from 0): answer is not text in UTF-8"),
    "ids floats": ({"idx": ["a"], "token_ids": [[1.0]]}, 'column "token_ids" must be a list of integers, got list<'),
    "ids null": ({"idx": ["a"], "token_ids": [[1, None]]}, "row 0 (counted from 0): token_ids is [1, null]"),
    "no list": ({"idx": ["a"], "token_ids": [1]}, 'column "token_ids" must be a list of integers, got int64'),
    "all null": ({"idx": ["a"], "answer": pa.nulls(1)}, "has no answers; not used: 1 empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_parquet_that_cannot_be_used_are_named(questions, tmp_path, name):
    columns, told = COLUMNS[name]
    with pytest.raises(UserError) as caught:
        check_answers(parquet(tmp_path, **columns), load_questions(str(questions)))
    assert told in str(caught.value)


def test_the_command_line_ends_with_code_2_and_one_line(config, questions, tmp_path, goldens, capsys, monkeypatch):
    file = jsonl(tmp_path, *GOOD, {"idx": "x", "answer": "x"})
    flags = ["--instruct_model_path", goldens / "llava/instruct", "--reward_model_path", goldens / "llava/reward"]
    flags += ["--dataset_path", questions, "--work_dir", tmp_path / "work", "--rank", "1", "--answers", file]
    for command in ("validate", "run"):
        assert main.main([command, *map(str, flags)]) == 2
        told = capsys.readouterr().err
        assert "the dataset has no question of the idx of 1 row: " in told
        assert "Traceback" not in told
    good = [*map(str, flags[:-1]), jsonl(tmp_path, *GOOD)]
    assert main.main(["validate", *good]) == 0
    assert "valid: 4 answers to 2 of 3 questions; instruct and reward model" in capsys.readouterr().out
