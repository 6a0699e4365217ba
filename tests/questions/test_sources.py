"""Parquet files as a source: rows from anywhere, little memory, cells of any size."""

import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from question_files import only, refusal, table, write, write_jsonl

from data_engine.questions import row_images
from data_engine.questions.dataset import load_questions
from data_engine.questions.sources import parquet
from data_engine.questions.sources.parquet import ParquetSource
from data_engine.schemas import IMAGE


def test_a_parquet_file_gives_its_rows_in_order(tmp_path):
    questions = load_questions(write(tmp_path / "q.parquet", list("abcde"), row_group_size=2))
    assert (len(questions), questions.idx, questions.idx_type) == (5, list("abcde"), pa.string())
    rows = list(questions.rows(range(1, 4)))
    assert [row.idx for row in rows] == ["b", "c", "d"]
    assert [row.question for row in rows] == ["question 1", "question 2", "question 3"]
    assert [row.image for row in rows] == [b"image 1", b"image 2", b"image 3"]
    assert [row.image_path for row in rows] == ["1.jpg", "2.jpg", "3.jpg"]
    assert {row.problem for row in rows} == {None}


@pytest.mark.parametrize("row_group_size", [1, 7, 100])
def test_any_range_gives_the_same_rows_in_any_order_of_asking(tmp_path, row_group_size):
    questions = load_questions(write(tmp_path / "q.parquet", list(range(100)), row_group_size=row_group_size))
    for start, stop in [(0, 10), (10, 20), (35, 60), (60, 61), (5, 5), (3, 12), (90, 100), (0, 100), (95, 120)]:
        found = [(row.idx, row.image) for row in questions.rows(range(start, stop))]
        assert found == [(i, b"image %d" % i) for i in range(start, min(stop, 100))], (start, stop)


def test_two_walks_at_once_do_not_disturb_each_other(tmp_path):
    questions = load_questions(write(tmp_path / "q.parquet", list(range(80))))
    # Leaves a row group read in part, which only one of the two may go on with.
    list(questions.rows(range(0, 10)))
    pairs = list(zip(questions.rows(range(10, 40)), questions.rows(range(30, 60)), strict=True))
    assert [(a.idx, b.idx) for a, b in pairs] == [(i, i + 20) for i in range(10, 40)]


def test_rising_ranges_read_a_row_group_once(tmp_path, monkeypatch):
    opened = []
    read_group = ParquetSource._read_group
    monkeypatch.setattr(ParquetSource, "_read_group", lambda *key: opened.append(key) or read_group(*key))
    questions = load_questions(write(tmp_path / "q.parquet", list(range(100))))
    assert [row.idx for start in range(0, 100, 9) for row in questions.rows(range(start, start + 9))] == list(
        range(100)
    )
    assert len(opened) == 1


def test_the_footer_of_a_file_is_not_read_again_for_each_of_its_row_groups(tmp_path, monkeypatch):
    opened = []
    open_parquet = parquet._open_parquet
    monkeypatch.setattr(parquet, "_open_parquet", lambda file: opened.append(file.name) or open_parquet(file))
    for name, start in (("a.parquet", 0), ("b.parquet", 50)):
        write(tmp_path / name, list(range(start, start + 50)), row_group_size=5)
    questions = load_questions(str(tmp_path))
    opened.clear()
    for start in range(0, 100, 10):
        assert [row.idx for row in questions.rows(range(start, start + 10))] == list(range(start, start + 10))
    assert opened == ["a.parquet", "b.parquet"]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    write(tmp_path / "part-b.parquet", [3, 4])
    write(tmp_path / "part-a.parquet", [1, 2])
    write(tmp_path / ".hidden.parquet", [9])
    (tmp_path / "README.md").write_text("---\nconfigs: 3\n---")
    questions = load_questions(str(tmp_path))
    assert [row.idx for row in questions.rows(range(1, 4))] == [2, 3, 4]


def test_memory_is_that_of_a_row_group_and_not_of_the_file(tmp_path):
    count, size = 300, 200_000
    images = pa.array([{"bytes": os.urandom(size), "path": None} for _ in range(count)], IMAGE)
    path = write(tmp_path / "q.parquet", list(range(count)), image=images, row_group_size=30)
    del images
    questions, before, peak = load_questions(path), pa.total_allocated_bytes(), 0
    for _ in questions.rows(range(count)):
        peak = max(peak, pa.total_allocated_bytes() - before)
    # A row group is 6 MB, of which Arrow holds the page, its decoded form, and a batch; the file is 60 MB.
    assert peak < 20e6


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.int64(), pa.int64()),
        (pa.int32(), pa.int32()),
        (pa.uint8(), pa.uint8()),
        (pa.string(), pa.string()),
        (pa.large_string(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string()),
    ],
)
def test_an_idx_keeps_its_integer_type_and_text_becomes_string(tmp_path, kind, expected):
    values = [7, 8] if pa.types.is_integer(kind) else ["7", "8"]
    questions = load_questions(write(tmp_path / "q.parquet", values, kind))
    assert questions.idx_type == expected
    assert [row.idx for row in questions.rows(range(2))] == values


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_an_image_column_may_be_plain_bytes(tmp_path, kind):
    row = only(load_questions(write(tmp_path / "q.parquet", ["a"], image=pa.array([b"x"], kind))))
    assert (row.image, row.image_path, row.problem) == (b"x", None, None)


def test_an_image_struct_needs_no_path(tmp_path):
    image = pa.array([{"bytes": b"x"}], pa.struct([("bytes", pa.large_binary())]))
    assert only(load_questions(write(tmp_path / "q.parquet", ["a"], image=image))).image == b"x"


def test_text_columns_may_be_large_or_dictionaries(tmp_path):
    text = pa.array(["what?"]).dictionary_encode()
    assert only(load_questions(write(tmp_path / "q.parquet", ["a"], question=text))).question == "what?"
    text = pa.array(["what?"], pa.large_string())
    assert only(load_questions(write(tmp_path / "r.parquet", ["a"], question=text))).question == "what?"


def test_optional_columns_are_passed_on_as_text(tmp_path):
    path = write(
        tmp_path / "q.parquet", ["a"], image_path=pa.array(["x/y.jpg"]), ds_name=pa.array([5]), other=pa.array([1])
    )
    questions = load_questions(path)
    assert questions.optional_columns == ("ds_name", "image_path")
    assert only(questions).extra == {"ds_name": "5", "image_path": "x/y.jpg"}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "datasets"])
def test_limit_keeps_the_first_rows(tmp_path, kind):
    path = write(tmp_path / "q.parquet", list(range(10)), row_group_size=3)
    if kind == "jsonl":
        path = write_jsonl(tmp_path / "q.jsonl", *({"idx": i, "question": "", "image": ""} for i in range(10)))
    elif kind == "datasets":
        path = str(tmp_path / "saved")
        datasets.Dataset.from_list(table(list(range(10))).to_pylist()).save_to_disk(path)
    assert load_questions(path, limit=4).idx == [0, 1, 2, 3]
    assert len(load_questions(path, limit=99)) == 10
    assert [row.idx for row in load_questions(path, limit=4).rows(range(2, 10))] == [2, 3]


def test_a_row_group_of_cells_that_are_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """2 rows of 3000 zeros: 100 bytes on disk. The limit is a mean: a large image among small ones is its row's."""
    large = pa.array([{"bytes": bytes(3000), "path": None}] * 2, IMAGE)
    path = tmp_path / "b.parquet"
    write(tmp_path / "a.parquet", [1])
    pq.write_table(table([2, 3], image=large), path, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(row_images, "MAX_FILE_BYTES", 2999)
    problems = [row.problem for row in load_questions(str(tmp_path)).rows(range(3))]
    assert problems == [None, *["image has 3000 bytes, more than 2999"] * 2]
    monkeypatch.setattr(parquet, "MAX_ROW_BYTES", 2999)
    monkeypatch.setattr(ParquetSource, "_read_group", lambda *a: pytest.fail("it is read"))
    assert refusal(str(tmp_path)).startswith(f'dataset file "{path}": column "image.bytes" unpacks to ')
    assert refusal(str(tmp_path)).endswith("bytes in the 2 rows of row group 0, more than 2999 bytes a row")


class Noted:
    """Metadata of a parquet file, of which the columns that are looked at are noted."""

    def __init__(self, metadata, looked_at: list[int]):
        self._metadata, self._looked_at = metadata, looked_at

    def __getattr__(self, name: str):
        return getattr(self._metadata, name)

    def row_group(self, group: int) -> "Noted":
        return Noted(self._metadata.row_group(group), self._looked_at)

    def column(self, place: int):
        self._looked_at.append(place)
        return self._metadata.column(place)


def test_only_the_columns_that_are_read_are_looked_at_in_each_row_group(tmp_path):
    """A file of millions of rows has tens of thousands of row groups."""
    others = {f"other_{number}": list(range(20)) for number in range(30)}
    path = write(tmp_path / "q.parquet", list(range(20)), row_group_size=2, **others)
    looked_at = []
    parquet._check_cell_sizes(Path(path), Noted(pq.read_metadata(path), looked_at), ("idx", "image"))
    # idx, and bytes and path of the image, of ten row groups.
    assert len(looked_at) == 3 * 10


def test_images_of_one_row_may_be_larger_together_than_one_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_ROW_BYTES", 2999)
    images = pa.array([[{"bytes": bytes([i]) * 2000, "path": None} for i in range(3)]], pa.list_(IMAGE))
    rows = pa.table({"idx": [1], "question": ["?"], "images": images})
    pq.write_table(rows, tmp_path / "q.parquet", compression="none", use_dictionary=False, write_statistics=False)
    assert [len(image) for image in only(load_questions(str(tmp_path))).images] == [2000] * 3


def test_a_large_cell_that_a_dictionary_repeats_is_unpacked_for_a_few_rows_at_a_time(tmp_path, monkeypatch):
    """10 rows of one cell of 3000 bytes, which the file holds once: unpacked they would have ten times as much."""
    path = tmp_path / "q.parquet"
    images = pa.array([{"bytes": bytes(3000), "path": None}] * 10, IMAGE)
    pq.write_table(table(list(range(10)), image=images), path, write_statistics=False)
    for most_bytes, rows in ((1 << 30, [10]), (9999, [3, 3, 3, 1]), (2000, [1] * 10)):
        monkeypatch.setattr(parquet, "MAX_BATCH_BYTES", most_bytes)
        batches = ParquetSource([path]).batches(range(10), ["question", "image"])
        assert [batch.num_rows for batch in batches] == rows
