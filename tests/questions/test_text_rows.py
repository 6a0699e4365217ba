"""Files of rows that are no jsonl: JSON arrays, gzip, other kinds."""

import csv
import gzip
import io
import json
import shlex
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from question_files import file_of, refusal, write

from data_engine.errors import UserError
from data_engine.questions.dataset import load_questions
from data_engine.questions.sources import json_rows, text_file
from data_engine.questions.sources.column_names import ColumnNames

ROWS = [{"idx": f"i{i}", "question": f'é, "{i}"\n?', "image": f"{i % 3}.png", "ds_name": "d"} for i in range(60)]


def as_json(rows: list[dict], **options) -> bytes:
    return json.dumps(rows, ensure_ascii=False, **options).encode()


def as_lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_csv(rows: list[dict]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


@pytest.fixture(params=[1, 7, 100, 1 << 20])
def pieces(request, monkeypatch):
    """So many bytes of an array are read at a time."""
    monkeypatch.setattr(json_rows, "_PIECE_BYTES", request.param)


SPELLINGS = {
    "q.json": as_json(ROWS),
    "indented.json": as_json(ROWS, indent=2),
    "marked.json": b"\xef\xbb\xbf \n" + as_json(ROWS) + b"\r\n",
    "lines.json": as_lines(ROWS),
    "marked.jsonl": b"\xef\xbb\xbf" + as_lines(ROWS).replace(b"\n", b"\r\n \r\n"),
    "array.jsonl": as_json(ROWS),
    "q.csv": as_csv(ROWS),
    "marked.csv": b"\xef\xbb\xbf" + as_csv(ROWS).replace(b"\r\n", b"\r\n\r\n"),
    "q.jsonl.gz": as_lines(ROWS),
    "q.json.gz": as_json(ROWS),
    "q.csv.gz": as_csv(ROWS),
    "q.ndjson.gz": as_lines(ROWS),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_rows_are_the_same_in_each_kind_of_file(tmp_path, name):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"image %d" % i)
    questions = load_questions(file_of(tmp_path, name, SPELLINGS[name]), image_root=str(tmp_path))
    assert (questions.idx, questions.idx_type) == ([row["idx"] for row in ROWS], pa.string())
    for start, stop in [(0, 60), (7, 9), (50, 60), (3, 4), (4, 20), (59, 99)]:
        rows = list(questions.rows(range(start, stop)))
        assert [(row.idx, row.question, row.image, row.extra) for row in rows] == [
            (f"i{i}", f'é, "{i}"\n?', b"image %d" % (i % 3), {"ds_name": "d"}) for i in range(start, min(stop, 60))
        ]


@pytest.mark.parametrize("name", ["lines.json", "q.json", "q.csv"])
def test_names_of_columns_are_looked_at_once_and_not_once_a_row(tmp_path, monkeypatch, name):
    """Which takes longer than parsing a row does."""
    looked_at = []
    for function in ("are_read", "ours"):
        was = getattr(ColumnNames, function)
        monkeypatch.setattr(ColumnNames, function, lambda *given, was=was: looked_at.append(given) or was(*given))
    load_questions(file_of(tmp_path, name, SPELLINGS[name]))
    # Of 60 rows.
    assert len(looked_at) < 20


def test_two_walks_over_a_packed_file_do_not_disturb_each_other(tmp_path):
    questions = load_questions(file_of(tmp_path, "q.jsonl.gz", as_lines(ROWS)))
    list(questions.rows(range(0, 10)))
    pairs = list(zip(questions.rows(range(10, 30)), questions.rows(range(30, 50)), strict=True))
    assert [(a.idx, b.idx) for a, b in pairs] == [(f"i{i}", f"i{i + 20}") for i in range(10, 30)]


def test_a_packed_file_is_unpacked_once_for_rising_units(tmp_path, monkeypatch):
    opened = []
    gzip_open = gzip.open
    questions = load_questions(file_of(tmp_path, "q.jsonl.gz", as_lines(ROWS)))
    monkeypatch.setattr(gzip, "open", lambda path: opened.append(path) or gzip_open(path))
    monkeypatch.setattr(gzip.GzipFile, "rewind", lambda self: pytest.fail("it is unpacked again"))
    for start in range(0, 60, 5):
        assert next(questions.rows(range(start, start + 5))).idx == f"i{start}"
    assert len(opened) == 1


changes = st.lists(
    st.tuples(
        st.integers(0, 6000), st.integers(0, 30), st.sampled_from([*b'"{}[],:\\\n\r\0\xff']).map(lambda i: bytes([i]))
    )
    | st.tuples(st.integers(0, 6000), st.integers(0, 6000), st.just(b"")),
    min_size=1,
    max_size=3,
)


@given(name=st.sampled_from(list(SPELLINGS)), changes=changes, packed_first=st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow], derandomize=True, max_examples=150)
def test_a_file_that_was_changed_anywhere_is_read_or_refused(name, changes, packed_first):
    data = SPELLINGS[name]
    packs = name.endswith(".gz")
    data = gzip.compress(data) if packs and packed_first else data
    for place, length, instead in changes:
        data = data[:place] + instead + data[place + length :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(gzip.compress(data) if packs and not packed_first else data)
        try:
            questions = load_questions(str(path), image_root=folder)
            rows = list(questions.rows(range(len(questions))))
        except UserError:
            return
    assert [row.idx for row in rows] == questions.idx
    assert all(row.problem or row.image for row in rows)


@pytest.mark.parametrize("name", ["q.csv", "q.json", "lines.json"])
def test_a_file_may_be_longer_than_a_row_of_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr(text_file, "MAX_RECORD_BYTES", 100)
    assert len(SPELLINGS[name]) > 100
    assert len(load_questions(file_of(tmp_path, name, SPELLINGS[name]))) == 60


# JSON arrays


def test_an_array_is_read_in_pieces_of_any_size(tmp_path, pieces):
    rows = [
        {"idx": i, "question": '\\"]}{["é犬' * i, "image": ["x"], "more": {"a": [1.5e3, None, {}]}} for i in range(9)
    ]
    for options in ({}, {"indent": 1}):
        questions = load_questions(file_of(tmp_path, "q.json", as_json(rows, **options)))
        assert [row.question for row in questions.rows(range(9))] == [row["question"] for row in rows]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "is empty"),
        ("[{]", "item 1 of the array: not JSON: "),
        ('[{"idx": 1} {"idx": 2}]', 'behind byte 11: not JSON: expected "," or the end of the array'),
        ('[{"idx": 1},]', "behind byte 11: not JSON: a comma before the end of the array"),
        ('[{"idx": 1}', "behind byte 11: cut off; the array has no end"),
        ('[{"idx": 1}, {"idx": ', "behind byte 11: not JSON: "),
        ('[{"idx": 1}, {"idx": "a', "behind byte 11: not JSON: Unterminated string"),
        ('[{"idx": 1}]]', "goes on behind the end of its array"),
        ("[1, 2]", "item 1 of the array: not an object"),
        ('[{"idx": 1}, 2]', "behind byte 11: not an object"),
        ("[", "item 1 of the array: cut off; the array has no end"),
        ("[" * 99999, "item 1 of the array: not an object"),
        ('[{"idx": ' + "[" * 99999, "item 1 of the array: not JSON: "),
        (
            '{\n "idx": 1\n}',
            "the object has no end in its line: write each row as one line, or all of them as one array",
        ),
        (
            '{"data": [{"idx": 1}, {"idx": 2}]}',
            'is one object, with a list of 2 others in "data"; write each row as one',
        ),
        # As VQAv2's files are.
        ('{"info": {"year": 1}, "questions": [{"question": "a"}]}', 'with a list of 1 others in "questions"'),
        (
            '{"a": {"idx": 1}, "b": {"idx": 2}}',
            "is one object, with 2 others by their keys; write each row as one line",
        ),
        # The one row of a first try.
        (
            '{"id": 1, "prompt": "a", "images": [{"path": "a.png"}]}',
            "columns: id, prompt, images; if so meant, say --columns idx=id,question=prompt",
        ),
        ('{"text": "a", "boxes": [{"name": "cat"}]}', "if so meant, say --columns question=text"),
        ('{"id": 1, "conversations": [{"from": "human"}]}', '"conversations" holds conversations, as of LLaVA'),
        ('{"idx": {"0": 1}, "question": {"0": "a"}}', "a table is expected row by row, not by columns"),
    ],
)
def test_what_is_no_array_of_objects_is_named_with_its_place(tmp_path, text, says):
    path = file_of(tmp_path, "q.json", text.encode())
    assert says in refusal(path)
    assert path in refusal(path)


@pytest.mark.parametrize(
    "found",
    [
        # As VQAv2's files are, and TextVQA's.
        {"info": {"year": 1}, "questions": [{"idx": "a", "question": "a?"}, {"idx": "b", "question": "b?"}]},
        {"a": {"question": "a?"}, "b": {"question": "b?"}},
    ],
)
@pytest.mark.parametrize("name", ["TextVQA_0.5.1_val", 'Jane\'s "own" $rows'])
def test_rows_in_one_object_are_written_as_an_array_by_the_command_that_is_told(tmp_path, found, name):
    path = file_of(tmp_path, f"{name}.json", json.dumps(found).encode())
    told, _, command = refusal(path).partition(" as one array: ")
    assert "is one object, with" in told
    program = [sys.executable, *shlex.split(command)[1:]]
    subprocess.run(program, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    # Beside it may be that of TextVQA_0.5.1_train.json.
    questions = load_questions(str(tmp_path / f"{name}-rows.json"))
    assert [(row.idx, row.question) for row in questions.rows(range(2))] == [("a", "a?"), ("b", "b?")]


def test_a_large_object_with_the_rows_in_it_is_told_as_a_row_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "MAX_RECORD_BYTES", 100)
    path = file_of(tmp_path, "q.json", b'{"questions": [' + b'{"idx": 1},' * 99)
    one = "; if the file is one object with the rows in it, write each row as one line, or all of them as one array, as"
    assert refusal(path).endswith(f"{one} docs/datasets.md shows")
    path = file_of(tmp_path, "q.jsonl", b'{"idx": 1}\n{"idx": 2, "question": "' + b"a" * 200)
    assert refusal(path).endswith(
        ", line 2: more than 100 bytes; a larger image is given by its path, under --image_root"
    )


def test_an_array_needs_no_more_memory_than_a_piece_and_the_places_of_rows(tmp_path):
    text = ("[" + ",\n".join(json.dumps({"idx": i, "text": "a" * 5000}) for i in range(4000)) + "]").encode()
    path = file_of(tmp_path, "q.json", text)
    tracemalloc.start()
    assert 'has no column "question"' in refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The file has 20 MB; a piece of 1 MB is there as bytes, as text, and twice while it is read on.
    assert peak < 8e6


@pytest.mark.parametrize("name", ["q.json", "q.json.gz", "q.jsonl.gz", "q.csv", "q.csv.gz"])
def test_a_row_without_end_is_refused_before_all_of_it_is_read(tmp_path, name):
    """256 MB of one text, packed in about a MB."""
    begin = {"q.json": '[{"idx": "', "q.jsonl": '{"idx": "', "q.csv": 'idx,question,image\n"'}[name.removesuffix(".gz")]
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=1) if name.endswith(".gz") else open(path, "wb") as file:
        file.write(begin.encode())
        for _ in range(256):
            file.write(b"a" * (1 << 20))
    tracemalloc.start()
    assert f": more than {16 << 20} bytes; a larger image is given by its path" in refusal(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 160e6


@pytest.mark.parametrize("name", ["q.jsonl.gz", "q.json.gz", "q.csv.gz"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"x" + data, lambda data: data[:50] + b"x" * 90]
)
def test_a_broken_packed_file_is_named(tmp_path, name, damage):
    path = Path(file_of(tmp_path, name, SPELLINGS[name]))
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(str(path)).startswith(f'dataset file "{path}" is cut off, broken or cannot be read: ')


@pytest.mark.parametrize("name", ["Q.CSV", "Q.JSONL", "Q.Csv.GZ", "Q.JSON.GZ", "q.csv.jsonl"])
def test_the_end_of_a_name_tells_the_kind_of_a_file_in_any_case(tmp_path, name):
    data = (
        b"idx,question\n1,a\n" if name.lower().removesuffix(".gz").endswith(".csv") else b'{"idx": 1, "question": "a"}'
    )
    path = file_of(tmp_path, name, gzip.compress(data) if name.endswith(".GZ") else data)
    (row,) = load_questions(path).rows(range(1))
    assert (row.idx, row.question) == (1, "a")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(b'{"idx": 1}'), "line 1: not JSON, but packed with gzip: let the name of the file end with .gz"),
        ('{"idx": 1}'.encode("utf-16"), "line 1: not UTF-8: invalid start byte; save the file as UTF-8"),
        ('{"idx": 1, "question": "\u00e9"}'.encode("latin-1"), "line 1: not UTF-8: invalid"),
    ],
)
def test_bytes_that_are_no_text_are_named_for_what_they_are(tmp_path, data, says):
    assert says in refusal(file_of(tmp_path, "q.jsonl", data))


@pytest.mark.parametrize("name", ["q", "q.txt", "q.yaml"])
def test_a_file_of_another_name_that_is_not_parquet_is_told_which_names_are_read(tmp_path, name):
    path = file_of(tmp_path, name, b'{"idx": 1, "question": "a"}\n')
    assert refusal(path).startswith(
        f'dataset_path "{path}" is no parquet file, and only one whose name ends with .jsonl'
    )


def test_a_parquet_file_of_another_name_is_one(tmp_path):
    for name in ("q.csv", "q.data", "q"):
        assert load_questions(write(tmp_path / name, [1])).idx == [1]


# Other kinds of files


@pytest.mark.parametrize("ending", [".xlsx", ".feather", ".parquet.gz", ".jsonl.zst", ".zip", ".tar"])
def test_a_file_that_cannot_be_read_is_named_with_the_way_to_convert_it(tmp_path, ending):
    path = file_of(tmp_path, f"Jane's q{ending}", b"something")
    last = f".{ending.rpartition('.')[2]}"
    assert refusal(path).startswith(f'dataset_path "{path}" is a {last} file; it can be parquet, .jsonl, .json, .csv')
    assert path in shlex.split(refusal(path).partition("with .gz: ")[2])
