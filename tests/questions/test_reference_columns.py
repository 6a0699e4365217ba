"""What rules read of a dataset: rows without their pictures, with the columns that a run asks for; of every source."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_files import noise, png
from validated import checked

from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.questions.dataset import load_questions

PICTURE = png(noise((20, 20), 80))
ROWS = [
    {"idx": 1, "question": "How many?", "answer": "4", "objects": ["a dog", "é"], "level": 2, "ds_name": "x"},
    {"idx": 2, "question": "Which?", "answer": None, "objects": None, "level": None, "ds_name": None},
    {"idx": 3, "question": "Why?", "answer": "½", "objects": [], "level": -1, "ds_name": "y"},
]


def parquet(folder, rows):
    pictures = [
        row | {"image": {"bytes": PICTURE, "path": None}, "sound": b"la", "nested": [{"b": b"x"}]} for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(pictures), folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


def jsonl(folder, rows):
    # Keys that the first row has not are found, too.
    lines = [{name: value for name, value in row.items() if value is not None} for row in rows]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder / "rows.jsonl"


def saved(folder, rows):
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("write", [parquet, jsonl, saved])
@pytest.mark.parametrize("order", [1, -1])
def test_every_source_gives_the_values_as_they_are(tmp_path, write, order):
    rows = ROWS[::order] if write is not jsonl or order == 1 else [ROWS[1], ROWS[0], ROWS[2]]
    questions = load_questions(str(write(tmp_path, rows)), further=None)
    assert list(questions.records(range(3))) == rows
    assert list(questions.records(range(1, 2))) == rows[1:2]
    for name in ("objects", "ds_name"):
        assert list(questions.column(name)) == [row[name] for row in rows]
    some = load_questions(str(write(tmp_path, rows)), further=("answer",))
    named = ("idx", "question", "answer", "ds_name")
    assert list(some.records(range(3))) == [{name: row[name] for name in named} for row in rows]
    # A run without rules reads what it always read.
    assert load_questions(str(write(tmp_path, rows))).further_columns == ()
    assert [question.question for question in questions.rows(range(3))] == [row["question"] for row in rows]


def test_csv_gives_texts(tmp_path):
    (tmp_path / "rows.csv").write_text('idx,question,answer,objects\n1,How many?,4,"a dog, a cat"\n2,Which?,,\n')
    questions = load_questions(str(tmp_path / "rows.csv"), further=None)
    assert list(questions.records(range(2))) == [
        {"idx": 1, "question": "How many?", "answer": "4", "objects": "a dog, a cat"},
        {"idx": 2, "question": "Which?", "answer": "", "objects": ""},
    ]


def test_the_question_of_messages_is_the_last_text_of_the_user(tmp_path):
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A dog."},
             {"role": "user", "content": "How many?"}]  # fmt: skip
    lines = [{"idx": 1, "messages": turns, "answer": 4}, {"idx": 2, "messages": [], "answer": {"a": [1.5]}}]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    questions = load_questions(str(tmp_path / "rows.jsonl"), further=("answer",))
    assert list(questions.records(range(2))) == [
        {"idx": 1, "question": "How many?", "answer": 4}, {"idx": 2, "question": None, "answer": {"a": [1.5]}}
    ]  # fmt: skip


def test_text_that_is_no_utf_8_does_not_end_the_run(tmp_path):
    bad = pa.array([b"caf\xe9", b"ok"], pa.binary()).view(pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), bad)
    table = pa.table({"idx": [1, 2], "question": ["a", "b"], "answer": bad, "objects": lists})
    pq.write_table(table, tmp_path / "rows.parquet")
    questions = load_questions(str(tmp_path / "rows.parquet"), further=None)
    found = list(questions.records(range(2)))
    assert [row["answer"] for row in found] == ["caf\ufffd", "ok"]
    assert [row["objects"] for row in found] == [None, ["ok"]]


def test_files_that_differ_in_a_column_are_refused_only_where_it_is_read(tmp_path):
    for number, answer in enumerate(("4", 4)):
        table = pa.table({"idx": [number], "question": ["a"], "answer": [answer]})
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    assert len(load_questions(str(tmp_path))) == 2
    with pytest.raises(UserError, match='column "answer" is of type int64, in the files before it of type string'):
        load_questions(str(tmp_path), further=("answer",))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_column_that_is_there_twice_is_refused_only_where_it_is_read(tmp_path, kind):
    texts = {
        "jsonl": '{"idx": 1, "question": "a", "answer": 1, "answer": 2}\n',
        "csv": "idx,question,answer,answer\n1,a,1,2\n",
    }
    (tmp_path / f"rows.{kind}").write_text(texts[kind])
    assert len(load_questions(str(tmp_path / f"rows.{kind}"))) == 1
    with pytest.raises(UserError, match=r'"answer"'):
        load_questions(str(tmp_path / f"rows.{kind}"), further=("answer",))


def test_validate_looks_for_the_columns_and_the_rule_before_a_run_does(tmp_path):
    (tmp_path / "answers.jsonl").write_text("".join(f'{{"idx": 1, "answer": "{text}"}}\n' for text in "abcdef"))
    flags = {"dataset_path": str(jsonl(tmp_path, ROWS)), "work_dir": str(tmp_path / "work"), "rewards": "rule",
             "answers": str(tmp_path / "answers.jsonl")}  # fmt: skip
    assert "no model" in checked(RunConfig(**flags, rule="objects"))
    (tmp_path / "mine.py").write_text("raise ValueError('too bad')\n")
    with pytest.raises(UserError, match=r"importing the file failed: ValueError: too bad \(line 1\)"):
        checked(RunConfig(**flags, rule=f"{tmp_path}/mine.py:f"))
    with pytest.raises(UserError, match=r'columns answer=label: dataset .* has no column "label"'):
        checked(RunConfig(**flags, rule="final_answer", columns="answer=label"))
    bare = jsonl(tmp_path, [{"idx": 1, "question": "a"}])
    with pytest.raises(UserError, match=r'rule objects needs the column "objects", and the dataset has none'):
        checked(RunConfig(**flags | {"dataset_path": str(bare)}, rule="objects"))
