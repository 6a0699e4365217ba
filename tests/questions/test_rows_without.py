"""Datasets that lack something: rows without an id, pictures without questions, folders of nothing but pictures."""

import errno
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from question_files import refusal
from run_files import png

from data_engine.questions.dataset import load_questions
from data_engine.questions.images import FORMATS
from data_engine.store.file_hashes import hash_files

QUESTION = "Describe the picture."


def picture(size: int) -> bytes:
    return png(Image.new("RGB", (size, size)))


@pytest.fixture
def pictures(tmp_path):
    """Four pictures, one of them in a folder below another, among what else lies in folders of pictures."""
    folder = tmp_path / "pictures"
    (folder / "pets/cats").mkdir(parents=True)
    (folder / ".cache").mkdir()
    named = ("b.png", "A.JPG", "pets/dog 1.webp", "pets/cats/tom.png")
    for size, name in enumerate(named, 1):
        (folder / name).write_bytes(picture(size))
    for name in (".hidden.png", "._b.png", ".cache/thumb.png", "Thumbs.db", "notes.txt"):
        (folder / name).write_bytes(picture(9))
    return folder


def read(path, **flags) -> list:
    questions = load_questions(str(path), **flags)
    assert questions.idx == [row.idx for row in questions.rows(range(len(questions)))]
    return list(questions.rows(range(len(questions))))


def test_the_same_is_asked_about_each_picture_of_a_folder(pictures):
    rows = read(pictures, question=QUESTION)
    expected = {"A.JPG": 2, "b.png": 1, "pets/cats/tom.png": 4, "pets/dog 1.webp": 3}
    assert [(row.idx, row.image) for row in rows] == [(path, picture(size)) for path, size in expected.items()]
    assert {(row.question, row.problem) for row in rows} == {(QUESTION, None)}
    assert [row.image_path for row in rows] == [row.idx for row in rows]
    assert [row.idx for row in read(pictures, question=QUESTION, limit=3)] == [row.idx for row in rows][:3]
    part = load_questions(str(pictures), question=QUESTION).rows(range(1, 3))
    assert [row.idx for row in part] == ["b.png", "pets/cats/tom.png"]


def test_every_name_of_a_kind_of_picture_that_is_read_is_one(pictures):
    Image.init()
    endings = [ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS]
    assert {".jpeg", ".ppm", ".tif"} < {*endings}
    for number, ending in enumerate(endings):
        (pictures / f"of kind {number}{ending}").write_bytes(picture(1))
    assert len(load_questions(str(pictures), question=QUESTION)) == 4 + len(endings)


def test_pictures_may_be_numbered_and_have_a_system_text(pictures):
    rows = read(pictures, question=QUESTION, columns={"idx": ""}, system="Be brief.")
    assert [(row.idx, row.image_path) for row in rows] == [
        (0, "A.JPG"), (1, "b.png"), (2, "pets/cats/tom.png"), (3, "pets/dog 1.webp"),
    ]  # fmt: skip
    assert {row.conversation.system for row in rows} == {"Be brief."}


def test_a_folder_of_pictures_says_what_to_add(pictures, tmp_path):
    assert refusal(str(pictures)).endswith(
        "it holds ._b.png, .cache, .hidden.png, A.JPG, Thumbs.db; to ask the same about each of its pictures, say so: "
        '--question "Describe the picture."'
    )
    assert refusal(str(pictures), question=QUESTION, split="test").endswith(
        "is a folder of pictures; name a folder in it"
    )
    (tmp_path / "empty").mkdir()
    assert "has no .parquet file" in refusal(str(tmp_path / "empty"), question=QUESTION)


def test_a_file_of_rows_beside_pictures_is_not_read_in_their_place_without_a_word(pictures):
    labels = pictures / "train.csv"
    labels.write_text("idx,label\ntom,cat\n")
    assert refusal(str(pictures), question=QUESTION) == (
        f'dataset_path "{pictures}" has pictures, and the file train.csv, which is read in their place, and which has '
        'no column "image" or "images". To ask about the pictures, move it out of the folder; to ask about its rows, '
        "name it as --dataset_path, or the column of their pictures by --columns image=NAME"
    )
    assert len(load_questions(str(labels), question=QUESTION)) == 1
    labels.write_text("idx,image\ntom,pets/cats/tom.png\n")
    assert [row.image_path for row in read(pictures, question=QUESTION)] == ["pets/cats/tom.png"]
    # Asked for.
    assert [row.images for row in read(pictures, question=QUESTION, columns={"image": ""})] == [()]


def test_of_a_file_of_rows_beside_pictures_what_is_wrong_with_it_is_told_first(pictures):
    labels = pictures / "train.csv"
    labels.write_text("idx,photo\ntom,pets/cats/tom.png\n")
    assert refusal(str(pictures), question=QUESTION, columns={"image": "phto"}).endswith("; did you mean photo?")
    labels.write_text("idx,question\ntom,Who is it?\n")
    assert "leave --question out" in refusal(str(pictures), question=QUESTION)


def test_folders_of_pictures_that_are_not_looked_into_are_told(pictures, tmp_path, monkeypatch):
    assert load_questions(str(pictures), question=QUESTION).warnings == []
    (tmp_path / "elsewhere").mkdir()
    (pictures / "linked").symlink_to(tmp_path / "elsewhere")
    (pictures / "pets/circle").symlink_to(pictures)
    (pictures / ".hidden").symlink_to(pictures)
    scandir = os.scandir

    def without_rights(folder):
        if str(folder).endswith("cats"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", without_rights)
    questions = load_questions(str(pictures), question=QUESTION, columns={"idx": ""})
    assert len(questions) == 3
    assert questions.warnings == [
        f'folders in "{pictures}" that are links or cannot be read are left out, with their pictures: '
        "linked, pets/cats, pets/circle"
    ]


@pytest.mark.parametrize("columns", [{"idx": "file_name", "image": "file_name"}, {"question": "prompt"}])
def test_a_folder_of_pictures_has_no_other_columns(pictures, columns):
    ours, theirs = next(iter(columns.items()))
    assert refusal(str(pictures), question=QUESTION, columns=columns) == (
        f'columns {ours}={theirs}: "{pictures}" is a folder of pictures, whose columns are idx and image'
    )


def test_another_picture_is_another_dataset_and_another_content_another_row(pictures):
    before = load_questions(str(pictures), question=QUESTION)
    digests = [row.digest for row in before.rows(range(4))]
    (pictures / "b.png").write_bytes(picture(7))
    changed = load_questions(str(pictures), question=QUESTION)
    assert changed.fingerprint(hash_files) == before.fingerprint(hash_files)
    assert [one == row.digest for one, row in zip(digests, changed.rows(range(4)), strict=True)] == [
        True, False, True, True,
    ]  # fmt: skip
    (pictures / "c.png").write_bytes(picture(7))
    assert load_questions(str(pictures), question=QUESTION).fingerprint(hash_files) != before.fingerprint(hash_files)


def test_a_picture_that_goes_away_may_come_back(pictures):
    questions = load_questions(str(pictures), question=QUESTION)
    (pictures / "b.png").unlink()
    row = next(iter(questions.rows(range(1, 2))))
    assert row.missing
    assert "is not a readable file" in row.problem


@pytest.fixture(params=["parquet", "jsonl", "csv", "folder"])
def without_ids(request, tmp_path):
    """Two rows (in 40 of which batches are cut) with a question and a picture, in each kind of file."""
    (tmp_path / "p.png").write_bytes(picture(1))
    rows = [{"question": f"What is {n}?", "image": "p.png"} for n in range(40)]
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet", row_group_size=7)
        return tmp_path / "q.parquet"
    if request.param == "jsonl":
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "q.jsonl"
    if request.param == "csv":
        (tmp_path / "q.csv").write_text("question,image\n" + "".join(f"{row['question']},p.png\n" for row in rows))
        return tmp_path / "q.csv"
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_rows_without_an_id_are_numbered_when_told_so(without_ids, tmp_path):
    assert refusal(str(without_ids)).endswith("; say --columns idx=NAME, or idx= to number the rows")
    found = read(without_ids, columns={"idx": ""}, image_root=str(tmp_path))
    assert [(row.idx, row.question, row.image) for row in found] == [
        (n, f"What is {n}?", picture(1)) for n in range(40)
    ]
    questions = load_questions(str(without_ids), columns={"idx": ""}, image_root=str(tmp_path), limit=33)
    assert questions.idx_type == pa.int64()
    assert [row.idx for row in questions.rows(range(30, 40))] == [30, 31, 32]
    assert len(questions.beyond_limit) == 7


def test_ids_that_repeat_are_passed_over_when_told_so(tmp_path):
    rows = [{"idx": "a", "question": "One?"}, {"idx": "a", "question": "Two?"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    assert refusal(str(tmp_path / "q.parquet")).endswith('"a" (2 times); --columns idx= numbers the rows instead')
    assert [(row.idx, row.question) for row in read(tmp_path / "q.parquet", columns={"idx": ""})] == [
        (0, "One?"), (1, "Two?"),
    ]  # fmt: skip


def test_one_question_for_a_table_of_pictures(tmp_path):
    rows = [{"name": "x", "image": {"bytes": picture(1), "path": None}}, {"name": "y", "image": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    told = refusal(str(tmp_path / "q.parquet"), columns={"idx": "name"})
    assert told.endswith("; say --columns question=NAME, or ask the same in each row by --question")
    one, other = read(tmp_path / "q.parquet", columns={"idx": "name"}, question=QUESTION)
    assert (one.idx, one.question, one.image) == ("x", QUESTION, picture(1))
    assert "row has no image" in other.problem


def test_the_only_row_of_a_file_may_have_a_picture_and_a_list_of_what_it_shows(tmp_path):
    (tmp_path / "p.png").write_bytes(picture(1))
    (tmp_path / "q.jsonl").write_text('{"file": "p.png", "objects": [{"name": "cat"}]}\n')
    flags = {"columns": {"idx": "", "image": "file"}, "question": QUESTION, "image_root": str(tmp_path)}
    assert [(row.idx, row.image) for row in read(tmp_path / "q.jsonl", **flags)] == [(0, picture(1))]


def test_what_rules_read_is_there_beside_added_columns(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"answer": "a cat"}\n{"answer": "a dog"}\n')
    questions = load_questions(str(tmp_path / "q.jsonl"), columns={"idx": ""}, question=QUESTION, further=("answer",))
    assert list(questions.records(range(2))) == [
        {"idx": 0, "question": QUESTION, "answer": "a cat"}, {"idx": 1, "question": QUESTION, "answer": "a dog"},
    ]  # fmt: skip


def test_a_column_of_questions_that_is_not_there_is_refused_beside_a_question(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"idx": "a"}]), tmp_path / "q.parquet")
    told = refusal(str(tmp_path / "q.parquet"), question=QUESTION, columns={"question": "promt"})
    assert told.endswith('has no column "promt"; columns: idx')


@pytest.mark.parametrize("column", ["question", "messages"])
def test_a_dataset_with_questions_is_not_asked_another_one(tmp_path, column):
    cell = "What?" if column == "question" else [{"role": "user", "content": "What?"}]
    pq.write_table(pa.Table.from_pylist([{"idx": "a", column: cell}]), tmp_path / "q.parquet")
    assert refusal(str(tmp_path / "q.parquet"), question=QUESTION) == (
        f'question is asked of datasets without questions of their own, and dataset "{tmp_path / "q.parquet"}" has the '
        f'column "{column}": leave --question out, or leave the column unread by --columns {column}='
    )
    (row,) = read(tmp_path / "q.parquet", question=QUESTION, columns={column: ""})
    assert row.question == QUESTION


def test_a_name_that_is_no_utf8_is_refused(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / b"\xff.png".decode("utf-8", "surrogateescape")).write_bytes(picture(1))
    assert "is not valid UTF-8; rename it" in refusal(str(folder), question=QUESTION)
