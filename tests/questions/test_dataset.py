"""A dataset of questions: what is wrong with all of it, and what it is known by. Its rows: test_dataset_rows.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from question_files import refusal, table, write, write_jsonl

from data_engine.errors import UserError
from data_engine.questions.dataset import Questions, load_questions
from data_engine.questions.sources.hub import DatasetsSource
from data_engine.store.file_hashes import hash_files

NUMBERED = "; --columns idx= numbers the rows instead"

# What is wrong with the dataset


def test_a_missing_column_is_named_with_those_that_exist(tmp_path):
    pq.write_table(table(["a"]).rename_columns(["idx", "prompt", "image"]), tmp_path / "q.parquet")
    assert refusal(str(tmp_path / "q.parquet")).endswith(
        'q.parquet" has no column "question"; columns: idx, prompt, image; if so meant, say --columns question=prompt'
    )


def test_defect_31_a_missing_idx_is_an_error_and_not_made_up(tmp_path):
    pq.write_table(table(["a"]).drop_columns(["idx"]), tmp_path / "q.parquet")
    assert refusal(str(tmp_path / "q.parquet")).endswith(
        'has no column "idx"; columns: question, image; say --columns idx=NAME, or idx= to number the rows'
    )


def test_duplicate_idx_are_listed_and_counted(tmp_path):
    path = write(tmp_path / "q.parquet", ["a", "b", "a", "c", "b", "a"])
    told = 'every idx must be unique; repeated: "a" (3 times), "b" (2 times)'
    assert refusal(path).endswith(told + NUMBERED)


def test_of_many_duplicates_the_first_five_are_shown(tmp_path):
    path = write(tmp_path / "q.parquet", [*range(7), *range(7)])
    assert "unique; repeated: 0 (2 times), " in refusal(path)
    assert refusal(path).endswith("4 (2 times) and 2 more" + NUMBERED)


def test_a_null_idx_is_an_error(tmp_path):
    path = write(tmp_path / "q.parquet", ["a", None, "b", None])
    assert refusal(path).endswith("idx is null in 2 of 4 rows, first in row 1 (counted from 0)" + NUMBERED)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"idx_type": pa.float64()},
            'column "idx" must be integer or text, got double; --columns idx= numbers the rows instead',
        ),
        ({"question": pa.array([["a"]])}, 'column "question" must be text, got list'),
        (
            {"image": pa.array([[b"a"]])},
            'column "image" must be struct{bytes, path}, binary, or text that is a path, got l',
        ),
        ({"image": pa.array([{"url": "x"}])}, 'column "image" must be struct{bytes, path}'),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(tmp_path, columns, says):
    assert says in refusal(write(tmp_path / "q.parquet", [1], **columns))


def test_a_path_to_nothing_is_refused(tmp_path):
    assert refusal(str(tmp_path / "no.parquet")) == f'no file or folder at dataset_path "{tmp_path}/no.parquet"'
    assert refusal("questoins.parquet") == 'no file or folder at dataset_path "questoins.parquet"'


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "q.jsonl")
    assert refusal(str(tmp_path / "q.jsonl")) == f'dataset_path "{tmp_path}/q.jsonl" is neither a file nor a folder'


def test_a_folder_without_parquet_says_what_it_holds(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").touch()
    assert refusal(str(tmp_path)).endswith("no .parquet file and no `datasets` dataset; it holds README.md, data")


def test_parquet_files_further_down_are_found_for_the_message(tmp_path):
    write_in = tmp_path / "en/train"
    write_in.mkdir(parents=True)
    write(write_in / "0000.parquet", [1])
    assert refusal(str(tmp_path)).endswith("; its folders en/train have: name one of them as --dataset_path")


def test_an_empty_dataset_is_refused(tmp_path):
    assert refusal(write(tmp_path / "q.parquet", [], pa.string())).endswith("has no rows")
    assert refusal(write_jsonl(tmp_path / "q.jsonl")).endswith("is empty")


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    (tmp_path / "q.parquet").write_text("idx,question,image\n")
    assert f'dataset file "{tmp_path}/q.parquet" is cut off, broken or not a parquet file' in refusal(str(tmp_path))


@pytest.mark.parametrize("name", ["q.parquet", "q.jsonl", "q.json", "q.csv"])
def test_a_git_lfs_pointer_is_named(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    says = "is a Git LFS pointer, not the data; run `git lfs pull` in its folder"
    assert refusal(str(tmp_path / name)) == f'dataset_path "{tmp_path / name}" {says}'
    if name == "q.parquet":
        assert refusal(str(tmp_path)) == f'dataset file "{tmp_path / name}" {says}'


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_file_that_is_cut_off_is_named(tmp_path, keep):
    write(tmp_path / "a.parquet", [1])
    path = Path(write(tmp_path / "b.parquet", [2]))
    path.write_bytes(path.read_bytes()[:keep])
    assert f'dataset file "{path}" is cut off' in refusal(str(tmp_path))


def test_another_schema_in_the_second_file_is_named(tmp_path):
    write(tmp_path / "a.parquet", ["1"])
    path = write(tmp_path / "b.parquet", [2])
    assert refusal(str(tmp_path)) == (
        f'dataset file "{path}" has another schema than "a.parquet": '
        'column "idx" is of type int64, in the files before it of type string; '
        "write all files of --dataset_path with the same columns"
    )


def test_a_column_missing_in_the_second_file_is_named(tmp_path):
    write(tmp_path / "a.parquet", ["1"])
    pq.write_table(table(["2"]).drop_columns(["image"]), tmp_path / "b.parquet")
    assert 'b.parquet" has another schema than "a.parquet": column "image" is missing' in refusal(str(tmp_path))


def test_files_may_differ_in_columns_that_are_not_used_and_in_the_width_of_text(tmp_path):
    write(tmp_path / "a.parquet", ["1"])
    write(tmp_path / "b.parquet", ["2"], pa.large_string(), score=pa.array([1.0]))
    assert load_questions(str(tmp_path)).idx == ["1", "2"]


def test_data_that_is_broken_behind_a_whole_footer_names_the_file(tmp_path):
    path = Path(write(tmp_path / "q.parquet", list(range(500))))
    questions = load_questions(str(path))
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r'dataset file ".*q\.parquet" is cut off, broken'):
        list(questions.rows(range(500)))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"split": "test"}, 'dataset_split "test" is for a folder or a hub dataset; '),
        ({"revision": "abc"}, 'dataset_revision "abc" is for a hub dataset; '),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, option, says):
    assert says in refusal(write(tmp_path / "q.parquet", [1]), **option)


# datasets


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folders that datasets.save_to_disk wrote: one Dataset, and one DatasetDict of train and test."""
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    rows = table([str(i) for i in range(40)]).to_pylist()
    one = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    one.save_to_disk(folder / "one")
    datasets.DatasetDict({"train": one, "test": one.select([30, 5])}).save_to_disk(folder / "dict")
    return folder


def test_a_datasets_folder_is_read(saved):
    rows = list(load_questions(str(saved / "one")).rows(range(2, 25)))
    assert [row.idx for row in rows] == [str(i) for i in range(2, 25)]
    assert (rows[0].image, rows[0].image_path) == (b"image 2", "2.jpg")


def test_a_split_of_a_datasets_folder_is_chosen_by_name(saved):
    assert load_questions(str(saved / "dict"), split="test").idx == ["30", "5"]
    assert refusal(str(saved / "dict"), split="tset").endswith('no split "tset"; dataset_split can be: train, test')


# Fingerprints


def test_a_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path, saved):
    makers = {
        "p": lambda path, ids: write(path / "q.parquet", ids),
        "j": lambda path, ids: write_jsonl(path / "q.jsonl", *({"idx": i, "question": "", "image": ""} for i in ids)),
    }
    for name, make in makers.items():
        places = [tmp_path / name / str(i) for i in range(3)]
        for place in places:
            place.mkdir(parents=True)
        same, copy, other = (make(p, ids) for p, ids in zip(places, ([1, 2], [1, 2], [1, 3]), strict=True))
        assert fingerprint(same) == fingerprint(copy) != fingerprint(other)
        # Of rows that are not read, too.
        assert fingerprint(same, limit=1) == fingerprint(same) != fingerprint(other, limit=1)
    shutil.copytree(saved / "one", tmp_path / "one")
    assert fingerprint(saved / "one") == fingerprint(tmp_path / "one") != fingerprint(saved / "dict", split="test")


def test_a_fingerprint_knows_every_cell(tmp_path):
    """Two files of the same footer: the cells are as long, and the ids are the same."""
    paths = [
        write(tmp_path / f"{number}.parquet", [1, 2], question=["a", letter]) for number, letter in enumerate("bc")
    ]
    footers = [Path(path).read_bytes()[-8:] for path in paths]
    assert footers[0] == footers[1]
    assert fingerprint(paths[0]) != fingerprint(paths[1])


def test_datasets_in_memory_are_told_apart_by_their_rows():
    def in_memory(question, **options):
        import datasets

        rows = [{"idx": idx, "question": question, "image": {"bytes": b"x", "path": None}} for idx in (1, 2)]
        source = DatasetsSource(datasets.Dataset.from_list(rows))
        return Questions(source, "dataset", **options).fingerprint(hash_files)

    assert in_memory("a") == in_memory("a") != in_memory("b")
    assert in_memory("a", limit=1) == in_memory("a") != in_memory("b", limit=1)


def fingerprint(path, **options) -> str:
    return load_questions(str(path), **options).fingerprint(hash_files)


def test_reading_questions_imports_neither_torch_nor_datasets(tmp_path):
    path = write(tmp_path / "q.parquet", [1])
    code = "import sys; from data_engine.questions.dataset import load_questions as load"
    code += f"; list(load({path!r}).rows(range(1)))"
    code += "; print([name for name in ('torch', 'datasets', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
