"""A jsonl file as a source: its lines, its images, and what is wrong with it."""

from pathlib import Path

import pyarrow as pa
import pytest
from question_files import refusal, write_jsonl

from data_engine.errors import UserError
from data_engine.questions.dataset import load_questions
from data_engine.questions.sources import text_file


def test_a_jsonl_file_is_read_with_images_under_image_root(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"x")
    rows = [{"idx": i, "question": f"é {i}", "image": "x.jpg", "ds_name": "d"} for i in range(3)]
    questions = load_questions(write_jsonl(tmp_path / "q.jsonl", rows[0], "", *rows[1:]), image_root=str(tmp_path))
    assert (questions.idx, questions.idx_type) == ([0, 1, 2], pa.int64())
    found = list(questions.rows(range(1, 3)))
    assert [(row.idx, row.question, row.image) for row in found] == [(1, "é 1", b"x"), (2, "é 2", b"x")]
    assert found[0].extra == {"ds_name": "d"}


def test_a_jsonl_image_may_be_an_object_and_its_problems_stay_in_the_row(tmp_path):
    rows = [{"idx": "a", "question": "q", "image": {"path": "x.jpg"}}, {"idx": "b", "question": 5, "image": None}]
    rows += [{"idx": "c", "question": "q"}, '{"idx": "d", "question": "\\ud800", "image": "x.jpg"}']
    rows += [{"idx": "e", "question": "q", "image": {"bytes": "", "path": "x.jpg"}}]
    (tmp_path / "x.jpg").write_bytes(b"x")
    questions = load_questions(write_jsonl(tmp_path / "q.jsonl", *rows), image_root=str(tmp_path))
    assert [row.problem for row in questions.rows(range(5))] == [
        None,
        "question is a number; expected text",
        "row has no image: neither bytes nor a path",
        "question is not valid UTF-8",
        None,
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: not an object"),
        ('{"question": "q"}', "line 2: idx is missing; expected text or a 64-bit whole number"),
        ('{"idx": 1.5}', "line 2: idx is 1.5; expected text or a 64-bit whole number; --columns idx= numbers the"),
        ('{"idx": true}', "line 2: idx is true; expected"),
        ('{"idx": null}', "line 2: idx is null; expected text or a 64-bit whole number; --columns idx= numbers the"),
        ('{"idx": "\\ud800"}', "line 2: idx is"),
        (f'{{"idx": {2**63}}}', "line 2: idx is 9223372036854775808; expected"),
        ('{"idx": "a"}', 'line 2: idx is "a", in the first row 0; write all of them as numbers or all as text'),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, line, says):
    assert says in refusal(write_jsonl(tmp_path / "q.jsonl", {"idx": 0, "question": "q", "image": "x"}, line))


def test_a_line_without_end_is_refused_before_all_of_it_is_read(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "q.jsonl", {"idx": 0, "question": "q", "image": "x"})
    first = len(Path(path).read_bytes())
    with open(path, "ab") as file:
        file.write(b'{"idx": 1, "question": "')
        # A terabyte of nothing, which takes no disk.
        file.truncate(1 << 40)
    assert (
        refusal(path)
        == f'"{path}", line 2: more than {16 << 20} bytes; a larger image is given by its path, under --image_root'
    )
    monkeypatch.setattr(text_file, "MAX_RECORD_BYTES", first)
    assert (
        refusal(path)
        == f'"{path}", line 2: more than {first} bytes; a larger image is given by its path, under --image_root'
    )


def test_a_jsonl_file_without_a_column_lists_those_of_its_first_line(tmp_path):
    path = write_jsonl(tmp_path / "q.jsonl", {"question": "q", "image": "x"})
    assert 'has no column "idx"; columns: question, image' in refusal(path)


def test_a_line_that_changed_since_the_file_was_opened_is_named_by_its_place(tmp_path):
    path = write_jsonl(tmp_path / "q.jsonl", *({"idx": i, "question": "q", "image": "x"} for i in range(2)))
    questions, data = load_questions(path), Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2] + b"x" * (len(data) // 2))
    with pytest.raises(UserError, match=f"behind byte {len(data) // 2}: not JSON"):
        list(questions.rows(range(2)))
