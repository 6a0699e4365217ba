"""CSV files with other marks between their cells than commas, as Excel and published datasets write them."""

import gzip
from pathlib import Path

import pytest
from question_files import refusal

from data_engine.questions.dataset import load_questions


def read(folder: Path, name: str, text: str) -> list[tuple]:
    """(idx, question, answer, path of the image) of each row; the file is read again from its second row on."""
    data = text.encode("utf-8-sig")
    (folder / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    questions = load_questions(str(folder / name), further=("answer",))
    answers = [row["answer"] for row in questions.records(range(len(questions)))]
    rows = [*questions.rows(range(1)), *questions.rows(range(1, len(questions)))]
    return [(row.idx, row.question, answer, row.image_path) for row, answer in zip(rows, answers, strict=True)]


@pytest.mark.parametrize("name", ["q.csv", "q.csv.gz", "q.tsv", "Q.TSV.GZ"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoted", [False, True])
def test_cells_may_be_separated_by_each_mark(tmp_path, name, mark, quoted):
    header = ["idx", "question", "answer", "image"]
    text = "\r\n" + mark.join(f'"{column}"' if quoted else column for column in header) + "\r\n"
    text += f'007{mark}"a{mark} b,c\r\n;d"{mark}None{mark}a.jpg\r\n'
    text += f'008{mark}"say ""yes"""{mark}1.50{mark}b.jpg\r\n'
    assert read(tmp_path, name, text) == [
        ("007", f"a{mark} b,c\r\n;d", "None", "a.jpg"),
        ("008", 'say "yes"', "1.50", "b.jpg"),
    ]


def test_the_index_that_pandas_writes_can_be_the_id(tmp_path):
    """And a comma at the end of each line is one more column, which nothing reads."""
    path = tmp_path / "q.csv"
    path.write_text(",question,image,\n0,What?,a.jpg,\n1,Who?,b.jpg,\n")
    assert refusal(str(path)).endswith(
        'has no column "idx"; columns: Unnamed: 0, question, image, Unnamed: 3; if so meant, say --columns '
        "'idx=Unnamed: 0'"
    )
    found = load_questions(str(path), columns={"idx": "Unnamed: 0"})
    assert [(row.idx, row.question, row.image_path) for row in found.rows(range(2))] == [
        (0, "What?", "a.jpg"), (1, "Who?", "b.jpg")
    ]  # fmt: skip


def test_a_space_behind_each_comma_is_in_no_cell(tmp_path):
    text = 'idx, question, answer, image\n1, "a, b", NA, a.jpg\n2, c , , b.jpg\n'
    assert read(tmp_path, "q.csv", text) == [(1, "a, b", "NA", "a.jpg"), (2, "c ", "", "b.jpg")]


def test_a_space_before_a_cell_of_other_files_is_in_it(tmp_path):
    text = "idx,question, answer,image,answer\n1, a, b,c.jpg,d\n"
    assert read(tmp_path, "q.csv", text) == [(1, " a", "d", "c.jpg")]


def test_the_mark_of_the_header_is_that_of_the_file(tmp_path):
    """Whatever else stands in names and cells."""
    text = "idx\tquestion\tanswer\timage\ta, b; c\n1\ta, b; c|d\te\tf.jpg\t\n"
    assert read(tmp_path, "q.tsv", text) == [(1, "a, b; c|d", "e", "f.jpg")]
    text = "idx,question,answer,image,a;b\n1,a;b,e,f.jpg,\n"
    assert read(tmp_path, "q.csv", text) == [(1, "a;b", "e", "f.jpg")]
