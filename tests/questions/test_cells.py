"""Cells of JSON, CSV and parquet rows: images in base64, and what is named for what it is."""

import base64
import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from question_files import only, refusal, write, write_jsonl
from run_files import png

from data_engine.questions.base64_images import is_image_text
from data_engine.questions.dataset import load_questions
from data_engine.schemas import IMAGE


def picture(format: str) -> bytes:
    return png(Image.new("RGB", (4, 3), (200, 30, 30)), format=format)


PNG = picture("PNG")
BASE64 = base64.b64encode(PNG).decode()


def written(path: Path, *rows: dict) -> str:
    """The rows in a file of the kind that its ending says."""
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, *rows)
    return str(path)


def problems_of(folder: Path, *rows: dict) -> list[str | None]:
    path = write_jsonl(folder / "q.jsonl", *({"idx": i} | row for i, row in enumerate(rows)))
    return [row.problem for row in load_questions(path, image_root=str(folder)).rows(range(len(rows)))]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (["a", "b"], "question is a list of 2; expected text"),
        ([], "question is a list of 0; expected text"),
        (
            [{"role": "user", "content": "a"}],
            "question is a list of 1 chat messages; expected the text of the question; a chat is named by --columns "
            "messages=NAME",
        ),
        (
            [{"from": "human", "value": "a"}] * 2,
            "question is a list of 2 chat messages; expected the text of the question",
        ),
        ({"text": "a"}, "question is an object; expected text"),
        (5, "question is a number; expected text"),
        (1.5, "question is a number; expected text"),
        (True, "question is true or false; expected text"),
        (None, "question is null"),
    ],
)
def test_a_question_that_is_no_text_is_named_for_what_it_is(tmp_path, question, says):
    (tmp_path / "x.png").write_bytes(PNG)
    assert problems_of(tmp_path, {"question": question, "image": "x.png"}) == [says]


def test_a_chat_in_json_that_is_named_as_its_problem_says_is_asked(tmp_path):
    """All columns of JSON are proposed as the texts that they may be: prompt as question."""
    path = write_jsonl(tmp_path / "q.jsonl", {"id": "a", "prompt": [{"role": "user", "content": "What?"}]})
    (row,) = load_questions(path, columns={"idx": "id", "messages": "prompt"}).rows(range(1))
    assert (row.question, row.problem) == ("What?", None)


def test_a_row_without_question_says_so(tmp_path):
    (tmp_path / "x.png").write_bytes(PNG)
    image = {"image": "x.png"}
    assert problems_of(tmp_path, {"question": "a"} | image, image) == [None, "row has no question"]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (
            ["a.png", "b.png", "c.png"],
            'row has 3 images in "image", which takes one; several stand in "images": --columns images=NAME',
        ),
        ([], "row has no image: neither bytes nor a path"),
        ([["a.png"]], "image is a list; expected a path, base64 text, or an object with one of them"),
        (5, "image is a number; expected a path, base64 text, or an object with one of them"),
        ({"url": "https://x/y.png"}, 'image is an object without "bytes" and "path"; it has ["url"]'),
        ({}, 'image is an object without "bytes" and "path"; it has []'),
        ({"bytes": [137, 80]}, '"bytes" of the image is a list; expected base64 text'),
        ({"path": 5}, '"path" of the image is a number; expected text'),
        ({"bytes": "hello, world"}, "image is text, but not base64"),
        ({"bytes": "aGVsb"}, "image is base64 text that is cut off"),
        ({"bytes": None, "path": None}, "row has no image: neither bytes nor a path"),
        (
            "data:image/svg+xml;utf8,<svg/>",
            "image is a data address without base64; expected data:image/...;base64,...",
        ),
        ("data:image/png;base64,!!!!", "image is text, but not base64"),
        (
            f"data:image/png;base64,{BASE64.rstrip('=')[: len(BASE64) // 4 * 4 - 7]}",
            "image is base64 text that is cut off",
        ),
        ("x.png", 'image path "x.png" is not a readable file under image_root'),
    ],
)
def test_an_image_that_cannot_be_taken_is_named_for_what_it_is(tmp_path, image, says):
    assert problems_of(tmp_path, {"question": "a", "image": image}) == [says]


IMAGES = {
    "data address": f"data:image/png;base64,{BASE64}",
    "address in capitals": f"DATA:image/png;name=x.png;BASE64,{BASE64}",
    "quoted address": f"data:image/png;base64,{BASE64.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
    "base64": BASE64,
    "base64 in lines": base64.encodebytes(PNG).decode(),
    "base64 without padding": BASE64.rstrip("="),
    "base64 for addresses": base64.urlsafe_b64encode(PNG).decode(),
    "list": [BASE64],
    "object": {"bytes": BASE64},
    "object with an address": {"bytes": f"data:image/png;base64,{BASE64}", "path": None},
    "list of an object": [{"bytes": BASE64}],
    "object with an address as path": {"path": f"data:image/png;base64,{BASE64}"},
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_an_image_in_the_text_is_read(tmp_path, name, ending):
    path = written(tmp_path / f"q{ending}", {"idx": 1, "question": "a", "image": IMAGES[name]})
    row = only(load_questions(path))
    assert (row.image, row.image_path, row.problem) == (PNG, None, None)


def test_an_image_with_bytes_keeps_its_path(tmp_path):
    row = {"idx": 1, "question": "a", "image": {"bytes": BASE64, "path": "x/1.png"}}
    row = only(load_questions(write_jsonl(tmp_path / "q.jsonl", row)))
    assert (row.image, row.image_path, row.problem) == (PNG, "x/1.png", None)


def test_a_list_of_one_path_is_that_path(tmp_path):
    (tmp_path / "x.png").write_bytes(PNG)
    assert problems_of(tmp_path, {"question": "a", "image": ["x.png"]}) == [None]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_base64_of_each_format_is_told_from_a_path(format):
    data = base64.b64encode(picture(format))
    assert is_image_text(data)
    assert is_image_text(data.rstrip(b"="))
    # The image itself is none.
    assert not is_image_text(picture(format))


@pytest.mark.parametrize(
    "path",
    [
        "x.png",
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0a.jpg",
        "train2017/000000000000000000000000000000000000000000000009",
        "/data/coco/images/train/COCO_train2014_000000000009_and_more_of_it",
        "iVBORw0KGgo",
        "https://data:80/a,b.png",
        "",
    ],
)
def test_a_path_is_not_taken_for_base64(path):
    assert not is_image_text(path.encode())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_base64_in_the_columns_of_a_parquet_file_is_read(tmp_path, kind):
    row = only(load_questions(write(tmp_path / "q.parquet", [1], image=pa.array([BASE64], pa.string()).cast(kind))))
    assert (row.image, row.image_path, row.problem) == (PNG, None, None)
    image = pa.array([{"bytes": None, "path": IMAGES["data address"]}], IMAGE)
    row = only(load_questions(write(tmp_path / "r.parquet", [1], image=image)))
    assert (row.image, row.image_path, row.problem) == (PNG, None, None)


def test_base64_in_a_csv_file_is_read(tmp_path):
    path = written(tmp_path / "q.csv", {"idx": 1, "question": "a", "image": IMAGES["data address"]})
    assert only(load_questions(path)).image == PNG


# Columns


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"idx": 1, "question": "a", "question": "b", "image": "x"}', '"question" is there more than once; keep one'),
        ('{"idx": 1, "idx": 2, "question": "b", "image": "x"}', '"idx" is there more than once; keep one'),
        (
            '{"idx": 1, "question": "b", "image": "x", "ds_name": "", "ds_name": ""}',
            '"ds_name" is there more than once',
        ),
        (
            '{"idx": 1, "question": "b", "image": {"path": "x", "path": "y"}}',
            '"path" of the image is there more than once',
        ),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path, row, says):
    good = '{"idx": 0, "question": "a", "image": "x", "note": 1, "note": {"idx": 1, "idx": 2}}'
    assert load_questions(write_jsonl(tmp_path / "q.jsonl", good)).idx == [0]
    assert f"line 2: {says}" in refusal(write_jsonl(tmp_path / "q.jsonl", good, row))
    (tmp_path / "q.json").write_text(f"[{good},{row}]")
    assert says in refusal(str(tmp_path / "q.json"))


def test_a_column_that_the_first_row_lacks_is_read(tmp_path):
    rows = [{"idx": 1, "question": "a", "image": "x"}, {"idx": 2, "question": "b", "image": "y", "ds_name": "d"}]
    questions = load_questions(write_jsonl(tmp_path / "q.jsonl", *rows))
    assert questions.optional_columns == ("ds_name",)
    assert [row.extra for row in questions.rows(range(2))] == [{"ds_name": None}, {"ds_name": "d"}]


def test_rows_of_conversations_are_named_for_what_they_are(tmp_path):
    row = {"id": 1, "conversations": [{"from": "human", "value": "a"}], "image": "0.png"}
    says = refusal(write_jsonl(tmp_path / "q.jsonl", row))
    assert (
        '; "conversations" holds conversations, as of LLaVA and ShareGPT: write them as "messages", lists of ' in says
    )
    columns = pa.table({key: pa.array([value]) for key, value in row.items()})
    pq.write_table(columns, tmp_path / "q.parquet")
    assert '; "conversations" holds conversations' in refusal(str(tmp_path / "q.parquet"))
