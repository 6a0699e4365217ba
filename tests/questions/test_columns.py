"""Columns of the dataset under names of its own, and what is wrong with columns beside the question and the image."""

import dataclasses
import json
import shlex

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversation_rows import ASSISTANT, USER, asked, message
from question_files import only, refusal, write, write_jsonl

from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.dataset import load_questions
from data_engine.questions.of_run import open_for_run, require_columns
from data_engine.schemas import IMAGE
from data_engine.stages import SourceFlags

NEEDED = ("instruct_model_path", "reward_model_path", "dataset_path", "work_dir")


def test_columns_may_have_other_names_in_each_kind_of_file(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    rows = [{"id": 7, "prompt": "What?", "picture": "a", "question": "not this", "idx": None, "source": "s"}]
    write_jsonl(tmp_path / "q.jsonl", *rows)
    (tmp_path / "q.json").write_text(json.dumps(rows))
    (tmp_path / "q.csv").write_text("id,prompt,picture,question,idx,source\n7,What?,a,not this,,s\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    columns = {"idx": "id", "question": "prompt", "image": "picture", "ds_name": "source"}
    for name in ("q.jsonl", "q.json", "q.csv", "q.parquet", "saved"):
        (row,) = asked(tmp_path / name, tmp_path, columns=columns)
        found = (row.idx, row.question, row.image, row.image_path, row.extra, row.problem)
        assert found == (7, "What?", b"a", "a", {"ds_name": "s"}, None), name


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"idx": "file_name", "image": "file_name"}, ("b.png", "What?", "b.png", {})),
        ({"idx": "image", "image": "image"}, ("a.png", "What?", "a.png", {})),
        (
            {"idx": "question", "image": "file_name", "ds_name": "file_name", "question": "question"},
            ("What?", "What?", "b.png", {"ds_name": "b.png"}),
        ),
    ],
)
def test_one_column_may_stand_for_several(tmp_path, columns, expected):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    rows = [{"file_name": "b.png", "question": "What?", "image": "a.png"}]
    write_jsonl(tmp_path / "q.jsonl", *rows)
    (tmp_path / "q.json").write_text(json.dumps(rows))
    (tmp_path / "q.csv").write_text("file_name,question,image\nb.png,What?,a.png\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("q.jsonl", "q.json", "q.csv", "q.parquet", "saved"):
        (row,) = asked(tmp_path / name, tmp_path, columns=columns)
        idx, question, image, extra = expected
        found = (row.idx, row.question, row.image, row.image_path, row.extra, row.problem)
        assert found == (idx, question, image.encode(), image, extra, None), name


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.parquet"])
def test_a_column_that_stands_for_two_is_named_once_where_it_is_wrong(tmp_path, name):
    columns = {"idx": "name", "image": "name"}
    if name == "q.parquet":
        pq.write_table(pa.table([["a"], ["?"], ["b"]], names=["name", "question", "name"]), tmp_path / name)
    else:
        text = '{"name": "a", "question": "?", "name": "b"}' if name == "q.jsonl" else "name,question,name\na,?,b\n"
        (tmp_path / name).write_text(text)
    assert refusal(str(tmp_path / name), columns=columns).count('"name"') == 1
    write_jsonl(tmp_path / "other.jsonl", {"name": "a"})
    assert refusal(str(tmp_path / "other.jsonl"), columns=columns).count("columns: name;") == 1


def test_a_column_without_a_name_is_not_read(tmp_path):
    row = {"idx": 1, "question": "?", "system": "Linux", "messages": [message(USER, "Who?"), message(ASSISTANT, "I")]}
    (found,) = asked(write_jsonl(tmp_path / "q.jsonl", row), columns={"system": "", "messages": ""})
    assert found.conversation == Conversation((Message(USER, ("?",)),))


@pytest.mark.parametrize("name", ["q.jsonl", "q.parquet"])
def test_a_column_that_the_dataset_lacks_is_named_by_the_flag(tmp_path, name):
    path = tmp_path / name
    columns = {"id": 1, "prompt": "?", "picture": "a"}
    write_jsonl(path, columns) if name == "q.jsonl" else pq.write_table(pa.Table.from_pylist([columns]), path)
    says = refusal(str(path), columns={"idx": "id", "question": "promt"})
    there = "columns: id, prompt, picture; did you mean prompt?"
    assert says == f'columns question=promt: dataset "{path}" has no column "promt"; {there}'
    assert refusal(str(path), columns={"question": "prompt"}).endswith(
        'has no column "idx"; columns: id, prompt, picture; if so meant, say --columns idx=id,image=picture'
    )


def test_a_column_that_the_flag_cannot_name_is_not_offered(tmp_path):
    """The flag takes off the space, so that the column would be missing again."""
    (tmp_path / "q.csv").write_text("id,prompt ,picture\n1,?,a\n")
    assert refusal(str(tmp_path / "q.csv")).endswith("; if so meant, say --columns idx=id,image=picture")
    assert refusal(str(tmp_path / "q.csv"), columns={"question": "prompt"}).endswith(
        'has no column "prompt"; columns: id, prompt , picture; the name "prompt " begins or ends with a space, which '
        "--columns takes off: rename the column"
    )


def test_a_column_that_is_given_another_name_is_said_to_be_so(tmp_path):
    write_jsonl(tmp_path / "q.jsonl", {"idx": 1, "image": "a", "source": "b"})
    assert refusal(str(tmp_path / "q.jsonl"), columns={"question": "idx"}).endswith(
        'has no column "idx"; columns: idx, image, source; say --columns idx=NAME, or idx= to number '
        "the rows; columns question=idx has it under another name"
    )


def test_what_is_wrong_with_a_column_is_said_by_its_own_name(tmp_path):
    names = {"idx": "id", "question": "prompt", "images": "pictures", "messages": "chat", "system": "rules"}
    types = {"question": pa.list_(pa.int8()), "images": pa.int8(), "messages": pa.list_(IMAGE), "system": pa.int8()}
    for ours, kind in types.items():
        theirs = names[ours]
        pq.write_table(pa.table({"id": [1], "prompt": ["?"]} | {theirs: pa.nulls(1, kind)}), tmp_path / "q.parquet")
        used = {name: names[name] for name in ("idx", "question", ours)}
        assert f'column "{theirs}" must be ' in refusal(str(tmp_path / "q.parquet"), columns=used)
    pq.write_table(pa.table({"id": [1], "prompt": ["?"]}).append_column("prompt", [["?"]]), tmp_path / "q.parquet")
    says = refusal(str(tmp_path / "q.parquet"), columns={"idx": "id", "question": "prompt"})
    assert 'has more than one column "prompt"; keep one' in says


def test_a_column_with_a_dot_in_its_name_is_read(tmp_path):
    columns = {"idx": [1], "meta.question": ["What?"], "meta": pa.array([{"question": "no"}])}
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    (row,) = asked(tmp_path / "q.parquet", columns={"question": "meta.question"})
    assert row.question == "What?"


@pytest.mark.parametrize("theirs", ["picture", "The Picture"])
@pytest.mark.parametrize(("name", "list_of"), [("image", False), ("images", True)])
def test_images_in_a_column_of_another_name_are_not_left_out_without_a_word(tmp_path, name, list_of, theirs):
    cells = pa.array([{"bytes": b"x", "path": None}], IMAGE)
    cells = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), cells) if list_of else cells
    path = write(tmp_path / "q.parquet", [1])
    pq.write_table(pq.read_table(path).drop_columns(["image"]).append_column(theirs, cells), path)
    told = refusal(path)
    assert f'has no column "image" or "images", but "{theirs}" holds images: say so with --columns ' in told
    assert told.endswith(", or take it out")
    said = told.removesuffix(", or take it out").partition("--columns ")[2]
    assert shlex.split(said) == [f"{name}={theirs}"]
    assert only(load_questions(path, columns={name: theirs})).images == (b"x",)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            ["ID", "Prompt", "Picture"],
            "columns: ID, Prompt, Picture; if so meant, say --columns idx=ID,question=Prompt,image=Picture",
        ),
        (["Idx", "question", "image"], "; if so meant, say --columns idx=Idx"),
        (["idx", "text"], "columns: idx, text; if so meant, say --columns question=text"),
        # Of one of two there is nothing that would do.
        (
            ["caption", "prompt"],
            "say --columns idx=NAME, or idx= to number the rows; if so meant, say --columns question=prompt",
        ),
        (["idx", "Questoin", "image"], "if so meant, say --columns question=Questoin"),
        (["indx", "question"], "if so meant, say --columns idx=indx"),
        (["idx", "massages"], "; say --columns question=NAME, or ask the same in each row by --question"),
        # Several questions may be about one picture.
        (["question_id", "image_id", "question"], "if so meant, say --columns idx=question_id"),
        (["image_id", "question_id", "question"], "if so meant, say --columns idx=question_id"),
        (["questionId", "question", "docId"], "if so meant, say --columns idx=questionId"),
        (["pid", "question", "image_path"], "if so meant, say --columns idx=pid,image=image_path"),
        # VLFeedback's.
        (["id", "prompt", "img_path"], "if so meant, say --columns idx=id,question=prompt,image=img_path"),
        (
            ["ID", "Question Text", "Image-Path"],
            "if so meant, say --columns 'idx=ID,question=Question Text,image=Image-Path'",
        ),
        # One of several is not the image.
        (["id", "question", "image_1", "image_2"], "if so meant, say --columns idx=id"),
        # Nothing that would do.
        (["idx", "caption", "image"], "; say --columns question=NAME, or ask the same in each row by --question"),
    ],
)
def test_columns_that_are_often_called_otherwise_are_proposed(tmp_path, columns, says):
    pq.write_table(pa.table({name: ["a"] for name in columns}), tmp_path / "q.parquet")
    assert refusal(str(tmp_path / "q.parquet")).endswith(says)
    if "; if so" in says and "NAME" not in says:
        names = dict(item.split("=") for item in shlex.split(says.partition("--columns ")[2])[0].split(","))
        assert load_questions(str(tmp_path / "q.parquet"), columns=names).idx == ["a"]


def test_a_chat_that_is_called_as_a_question_is_proposed_as_messages(tmp_path):
    chat = pa.array([[message(USER, "What?")]], pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))
    pq.write_table(pa.table({"id": ["a"], "prompt": chat}), tmp_path / "q.parquet")
    assert refusal(str(tmp_path / "q.parquet")).endswith(
        'has no columns "idx" and "question"; columns: id, prompt; if so meant, say --columns idx=id,messages=prompt'
    )
    row = only(load_questions(str(tmp_path / "q.parquet"), columns={"idx": "id", "messages": "prompt"}))
    assert row.question == "What?"


def test_a_column_that_holds_something_else_is_not_proposed(tmp_path):
    columns = {"idx": ["a"], "query": ["What?"], "prompt": pa.array([[1.5]])}
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    assert refusal(str(tmp_path / "q.parquet")).endswith("; if so meant, say --columns question=query")


def test_several_columns_of_images_are_named_together(tmp_path):
    """As of MMMU: each alone would be a question without its other images."""
    cell = pa.array([{"bytes": b"x", "path": None}], IMAGE)
    path = write(tmp_path / "q.parquet", [1], image_1=cell, image_2=cell)
    pq.write_table(pq.read_table(path).drop_columns(["image"]), path)
    assert refusal(path).endswith(
        'has no column "image" or "images", but "image_1", "image_2" hold images: one of them alone is named by '
        '--columns image=NAME; all of them are asked about where each row has them as one list in "images", as '
        "docs/datasets.md shows"
    )


def test_lists_of_images_in_the_column_of_one_image_are_told_the_flag_that_reads_them(tmp_path):
    cells = pa.array([[{"bytes": b"x", "path": None}, {"bytes": b"y", "path": None}]], pa.list_(IMAGE))
    path = write(tmp_path / "q.parquet", [1], image=cells)
    assert refusal(path).endswith("; lists of images stand in images: say --columns images=image")
    assert only(load_questions(path, columns={"images": "image"})).images == (b"x", b"y")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            '{"idx": 1, "messages": [{"role": "user", "content": "a", "role": "system"}]}',
            '"role" of an item of messages',
        ),
        ('{"idx": 1, "question": "a", "images": [{"path": "x", "path": "y"}]}', '"path" of an item of images'),
    ],
)
def test_a_key_that_is_there_twice_inside_a_list_is_refused(tmp_path, row, says):
    assert f"line 1: {says} is there more than once; keep one" in refusal(write_jsonl(tmp_path / "q.jsonl", row))


def test_a_column_of_pictures_that_is_the_id_alone_is_named_as_the_dataset_does(tmp_path):
    path = write_jsonl(tmp_path / "q.jsonl", {"image": "a.png", "question": "?"})
    config = RunConfig(
        instruct_model_path="a", reward_model_path="b", dataset_path=str(path), work_dir="d",
        columns="idx=image", image_root=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(UserError, match="columns: image, question; say --columns image=NAME"):
        open_for_run(config)
    assert open_for_run(dataclasses.replace(config, columns="idx=image,image=image")).idx == ["a.png"]


def test_a_typo_on_the_other_side_is_told_with_the_nearest_name():
    with pytest.raises(UserError, match=r'columns names "qestion", .*; did you mean question\?'):
        RunConfig(**dict.fromkeys(NEEDED, "x"), columns="qestion=prompt")


@pytest.mark.parametrize(
    ("read", "theirs", "says"),
    [
        ("answer", "response", "answer=response"),
        # As a shell takes it.
        ("answer", "Ground Truth", "'answer=Ground Truth'"),
        # What a rule calls its column may itself have several words, or a number, or be what others call the answer.
        ("ground_truth", "Ground_Truth", "ground_truth=Ground_Truth"),
        ("ground_truth", "groundTruth", "ground_truth=groundTruth"),
        ("answer_2", "Answer 2", "'answer_2=Answer 2'"),
    ],
)
def test_the_column_that_a_rule_compares_with_is_proposed(tmp_path, read, theirs, says):
    path = write(tmp_path / "q.parquet", [1], question=["What?"])
    pq.write_table(pq.read_table(path).append_column(theirs, pa.array(["a"])), path)
    questions = load_questions(path, further=None)
    with pytest.raises(UserError) as told:
        require_columns(questions, SourceFlags(None, {}, (read,), "rule final_answer"))
    assert f'needs the column "{read}"' in str(told.value)
    assert str(told.value).endswith(f"; if so meant, say --columns {says}")
