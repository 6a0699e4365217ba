"""Folders of text files that are one dataset by their names: shards and splits of JSON and CSV rows."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from question_files import refusal, write

from data_engine.questions.dataset import load_questions
from data_engine.store.claims import Claims
from data_engine.store.file_hashes import FileHashes

# One row of each file, as the file has it.
ROW = {
    ".jsonl": '{{"idx": "{0}", "question": "what is {0}?"}}\n',
    ".ndjson": '{{"idx": "{0}", "question": "what is {0}?"}}\n',
    ".json": '[{{"idx": "{0}", "question": "what is {0}?"}}]',
    ".csv": "idx,question\n{0},what is {0}?\n",
}


def folder_of(folder: Path, *names: str) -> str:
    """A text file by each name, with one row, whose idx is the name up to its first dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        text = ROW["." + name.removesuffix(".gz").rpartition(".")[2]].format(name.partition(".")[0])
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(folder)


@pytest.mark.parametrize(
    "names",
    [
        ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl"],
        ["q_0001.jsonl.gz", "q_0002.jsonl.gz"],
        ["a0.csv", "a1.csv"],
        ["part-00000-of-00002.json", "part-00001-of-00002.json"],
        ["batch1.ndjson", "batch12.ndjson"],
        ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
        ["train.csv"],
    ],
)
def test_shards_are_one_dataset_in_the_order_of_their_names(tmp_path, names):
    folder = folder_of(tmp_path / "d", *names)
    # Neither hidden files nor those of another kind are in the way.
    for other in (".part-9.jsonl", "_part-9.csv", "README.md", "dataset_info.json"):
        (tmp_path / "d" / other).write_text("{}")
    questions = load_questions(folder)
    stems = [name.partition(".")[0] for name in names]
    assert questions.idx == load_questions(folder, split="train").idx == stems
    assert [row.question for row in questions.rows(range(len(names)))] == [f"what is {stem}?" for stem in stems]
    assert questions.file_sizes() == [(name, 1) for name in names]


def test_names_tell_the_splits_and_the_data_folder_of_a_dataset_of_the_hub_is_found(tmp_path):
    folder_of(tmp_path / "data", "train.jsonl", "test.jsonl")
    assert refusal(str(tmp_path)).endswith("has several splits: test, train; choose one with --dataset_split")
    assert load_questions(str(tmp_path), split="test").idx == ["test"]


@pytest.mark.parametrize(
    "names",
    [["q.jsonl"], ["questions.jsonl", "answers.jsonl"], ["train.jsonl", "mine.jsonl"], ["a1.jsonl", "a1.csv"],
     ["a1.csv", "a2.csv", "b1.jsonl", "b2.jsonl"]],
)  # fmt: skip
def test_files_that_do_not_say_that_they_belong_together_are_not_read_as_one(tmp_path, names):
    told = refusal(folder_of(tmp_path, *names))
    assert told.endswith("to read one of its files, name the file as --dataset_path: " + ", ".join(sorted(names)))
    assert ("give them names that differ in their numbers alone" in told) == (len(names) > 1)


def test_parquet_files_come_before_text_files(tmp_path):
    write(tmp_path / "mine.parquet", [7])
    assert load_questions(folder_of(tmp_path, "part-0.jsonl", "part-1.jsonl")).idx == [7]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_rows_of_any_range_are_those_of_one_file_with_all_lines(tmp_path, ending):
    """Files of 3, 0, 1 and 4 rows. The second kind of row has a column more, and a picture."""
    rows = [{"idx": i, "question": f"q{i}"} | ({"image": f"{i}.png"} if i > 2 else {}) for i in range(8)]
    for i in range(3, 8):
        (tmp_path / f"{i}.png").write_bytes(b"image %d" % i)
    (tmp_path / "d").mkdir()
    for number, part in enumerate((rows[:3], [], rows[3:4], rows[4:])):
        text = "".join(json.dumps(row) + "\n" for row in part).encode()
        (tmp_path / f"d/part-{number}{ending}").write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    questions = load_questions(str(tmp_path / "d"), image_root=str(tmp_path))
    assert (questions.idx, questions.idx_type) == (list(range(8)), pa.int64())
    for start in range(9):
        for stop in range(start, 9):
            found = [(row.idx, row.question, row.image) for row in questions.rows(range(start, stop))]
            assert found == [(i, f"q{i}", b"image %d" % i if i > 2 else None) for i in range(start, stop)]


def test_ids_of_one_kind_are_asked_of_all_files(tmp_path):
    (tmp_path / "1.jsonl").write_text('{"idx": 1, "question": "a"}\n')
    (tmp_path / "2.jsonl").write_text('{"idx": "b", "question": "a"}\n')
    assert refusal(str(tmp_path)) == (
        f'"{tmp_path}/2.jsonl", line 1: idx is "b", in the first row 1; write all of them as numbers or all as text'
    )
    # In CSV all is text, and an id is a number only where all are.
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/1.csv").write_text("idx,question\n1,a\n")
    (tmp_path / "csv/2.csv").write_text("question,idx\na,b\n")
    assert load_questions(str(tmp_path / "csv")).idx == ["1", "b"]


def test_the_same_id_in_two_files_and_a_broken_row_are_refused_by_name(tmp_path):
    for name in ("1.jsonl", "2.jsonl"):
        (tmp_path / name).write_text('{"idx": 1, "question": "a"}\n')
    assert "1" in refusal(str(tmp_path))
    (tmp_path / "2.jsonl").write_text("{")
    assert refusal(str(tmp_path)).startswith(f'"{tmp_path}/2.jsonl", line 1: not JSON')
    (tmp_path / "2.jsonl").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert refusal(str(tmp_path)).startswith(f'dataset_path "{tmp_path}/2.jsonl" is a Git LFS pointer')


def test_the_fingerprint_knows_every_file(tmp_path):
    def fingerprint() -> str:
        hash_files = FileHashes(tmp_path / "work", Claims(tmp_path / "work", 0))
        return load_questions(str(tmp_path / "d")).fingerprint(hash_files)

    folder_of(tmp_path / "d", "1.jsonl", "2.jsonl")
    found = fingerprint()
    assert fingerprint() == found
    (tmp_path / "d/2.jsonl").write_text('{"idx": "3", "question": "what is 3?"}\n')
    assert fingerprint() != found
