"""Rows of CSV files: ids, spaces, long cells, and what is wrong with its line."""

import pyarrow as pa
import pytest
from question_files import file_of, refusal

from data_engine.questions.dataset import load_questions


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["7", "-8"], [7, -8]),
        (["0", str(2**63 - 1)], [0, 2**63 - 1]),
        (["007", "8"], ["007", "8"]),
        (["7", "x"], ["7", "x"]),
        (["7", "8.0"], ["7", "8.0"]),
        (["+7", "8"], ["+7", "8"]),
        (["-0", "8"], ["-0", "8"]),
        (["1", str(2**63)], ["1", str(2**63)]),
        (["1", "1" * 5000], ["1", "1" * 5000]),
        (["1", "²"], ["1", "²"]),
    ],
)
def test_ids_of_a_csv_file_are_numbers_where_all_are_written_so(tmp_path, ids, expected):
    text = "idx,question,image\n" + "".join(f"{id},q,x.png\n" for id in ids)
    questions = load_questions(file_of(tmp_path, "q.csv", text.encode()))
    assert questions.idx == expected
    assert questions.idx_type == (pa.int64() if isinstance(expected[0], int) else pa.string())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("idx,question,image\n", "is empty"),
        ("idx,question,image\n1,a\n", "line 2: 2 cells, but 3 columns; a text with a comma stands in quotes"),
        ("idx,question,image\n1,a,b,c\n", "line 2: 4 cells, but 3 columns"),
        ("idx,question,image\n1;a\n", "line 2: 1 cell, but 3 columns"),
        ('idx,question,image\n1,"a\nb",c\n2,a\n', "line 4: 2 cells, but 3 columns"),
        (
            'idx,question,image\n1,"a"b,c\n',
            "line 2: not CSV: ',' expected after '\"'; a text that begins with a quote stands in quotes, and a quote "
            'in it is doubled: "say ""yes"", please"',
        ),
        ('idx,question,image\n1,"a,b\n', "line 2: not CSV: unexpected end of data"),
        ("idx,question,image\n,a,b\n", "line 2: idx is empty; expected text or a whole number; --columns idx= numbers"),
        ("idx,question,question,image\n1,a,b,c\n", 'has more than one column "question"; keep one'),
        ("idx;question;image\n1;a;b;c\n", "line 2: 4 cells, but 3 columns; a text with a semicolon stands in quotes"),
        ("idx\tquestion\n1\ta\tb\n", "line 2: 3 cells, but 2 columns; a text with a tab stands in quotes"),
        ("idx,question\r1,a\r", "line 1: not CSV: lines end with CR alone; save the file with LF or CRLF"),
        # As pandas writes it, beside lines that end with LF.
        (
            "idx,question\n1,a\n2,What\ris it?\n",
            "line 3: not CSV: a CR stands in a text without quotes; put the text in",
        ),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_named_with_its_line(tmp_path, text, says):
    assert says in refusal(file_of(tmp_path, "q.csv", text.encode()))


def test_a_space_before_one_column_alone_is_a_part_of_its_name(tmp_path):
    questions = load_questions(file_of(tmp_path, "q.csv", b"idx,question, note\n1,a, b\n"))
    assert [(row.idx, row.question) for row in questions.rows(range(1))] == [(1, "a")]


def test_a_cell_of_a_csv_file_may_be_longer_than_the_module_allows(tmp_path):
    text = f"idx,question,image\n1,{'a' * 140_000},x.png\n"
    (row,) = load_questions(file_of(tmp_path, "q.csv", text.encode())).rows(range(1))
    assert row.question == "a" * 140_000


def test_a_csv_file_in_another_coding_is_named(tmp_path):
    path = file_of(tmp_path, "q.csv", "idx,question,image\n1,é,x\n".encode("latin-1"))
    assert refusal(path) == f'"{path}", line 2: not UTF-8: invalid continuation byte; save the file as UTF-8'
