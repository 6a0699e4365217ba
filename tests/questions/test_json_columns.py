"""Columns of Arrow's JSON and of its UUIDs, as `datasets` and DuckDB write values of several types, and ids."""

import json
import uuid
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversation_rows import ASSISTANT, PLACE, USER, asked, message, said, text
from question_files import refusal

from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import load_questions
from data_engine.questions.given_rows import GivenFile

KINDS = ("parquet", "saved")


def in_json(values: list) -> pa.Array:
    """A column of JSON; None is a null."""
    coded = [None if value is None else json.dumps(value) for value in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(coded, pa.string()))


def stored(folder: Path, kind: str, columns: dict) -> Path:
    made = pa.table(columns)
    if kind == "parquet":
        pq.write_table(made, folder / "q.parquet")
        return folder / "q.parquet"
    datasets.Dataset(datasets.table.InMemoryTable(made)).save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("kind", KINDS)
def test_contents_of_messages_that_are_json_are_what_it_says(tmp_path, kind):
    """A text in some messages, parts in others: each would else be asked as JSON, in quotes and brackets."""
    contents = ["Hi", "Hello", [PLACE, text("What?")], 'Say "no"']
    turns = pa.StructArray.from_arrays(
        [pa.array([USER, ASSISTANT, USER, USER]), in_json(contents)], names=["role", "content"]
    )
    columns = {"idx": [1, 2], "messages": pa.ListArray.from_arrays([0, 3, 4], turns), "images": [[b"a"], []]}
    first, second = asked(stored(tmp_path, kind, columns))
    expected = (said(USER, "Hi"), said(ASSISTANT, "Hello"), said(USER, 0, "What?"))
    assert first.conversation == Conversation(expected)
    assert second.conversation == Conversation((said(USER, 'Say "no"'),))


@pytest.mark.parametrize("kind", KINDS)
def test_messages_that_are_json_as_a_whole_are_asked(tmp_path, kind):
    columns = {"idx": [1], "messages": in_json([[message(USER, "What?")]])}
    (row,) = asked(stored(tmp_path, kind, columns))
    assert row.conversation == Conversation((said(USER, "What?"),))


@pytest.mark.parametrize("kind", KINDS)
def test_a_further_column_of_json_has_the_values_that_it_says(tmp_path, kind):
    """By which a rule compares: "cat" in quotes is another answer."""
    answers = ["cat", ["cat", "dog"], 5, None]
    inside = pa.StructArray.from_arrays([in_json(answers)], names=["value"])
    broken = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{"] * 4))
    columns = {"idx": [0, 1, 2, 3], "question": ["?"] * 4, "answer": in_json(answers), "inside": inside}
    path = stored(tmp_path, kind, columns | {"ds_name": in_json(answers), "broken": broken})
    records = list(load_questions(str(path), further=None).records(range(4)))
    assert [row["answer"] for row in records] == answers
    assert [row["inside"] for row in records] == [{"value": answer} for answer in answers]
    assert [row["broken"] for row in records] == [None] * 4
    assert [row.extra["ds_name"] for row in asked(path)] == ["cat", '["cat", "dog"]', "5", None]


def test_ids_may_be_uuids(tmp_path):
    """As DuckDB takes texts that look like them for."""
    ids = [uuid.UUID(int=1), uuid.UUID(int=2)]
    column = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([one.bytes for one in ids], pa.binary(16)))
    path = stored(tmp_path, "parquet", {"idx": column, "question": ["?", "!"]})
    expected = ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"]
    questions = load_questions(str(path))
    assert (questions.idx, questions.idx_type) == (expected, pa.string())
    answers = stored(tmp_path, "parquet", {"idx": column, "answer": ["a", "b"]})
    assert [row.idx for row in GivenFile(str(answers), questions.idx_type).rows()] == expected


def test_a_question_that_is_json_is_refused(tmp_path):
    path = stored(tmp_path, "parquet", {"idx": [1], "question": in_json(["What?"])})
    assert refusal(str(path)).endswith('column "question" must be text, got extension<arrow.json>')
