"""Splits of folders and of `datasets` folders; folders that are broken or empty."""

import errno
import os
import shutil
import struct
from pathlib import Path

import pyarrow as pa
import pytest
from question_files import folder_of, refusal, table, write, write_jsonl

from data_engine.errors import UserError
from data_engine.questions.dataset import load_questions

# Folders of parquet files


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ["test-00000-of-00001.parquet"]),
        (["train-00000-of-00001-a09b74b3ef9c3b56.parquet"], ["val-00000-of-00001-b09b74b3ef9c3b56.parquet"]),
        (["train.parquet"], ["test.parquet"]),
        (["Train.parquet"], ["Test.parquet"]),
        (["my_train_a.parquet", "my_train_b.parquet"], ["my_dev_a.parquet"]),
        (["llava.train.parquet"], ["llava.validation.parquet"]),
        (["train1.parquet", "train2.parquet"], ["eval1.parquet"]),
        (["coco-00000-of-00001.parquet"], ["gqa-00000-of-00001.parquet"]),
    ],
)
def test_names_tell_the_splits_of_a_folder(tmp_path, one, other):
    folder = folder_of(tmp_path, *one, *other)
    says = refusal(folder)
    assert says.startswith(f'dataset_path "{folder}" has several splits: ')
    assert says.endswith("; choose one with --dataset_split")
    names = says.split(": ")[1].split(";")[0].split(", ")
    read = sorted(load_questions(folder, split=name).idx for name in names)
    assert read == sorted([sorted(one), sorted(other)])


def test_the_only_split_of_a_folder_needs_no_name(tmp_path):
    folder = folder_of(tmp_path, "test-00000-of-00002.parquet", "test-00001-of-00002.parquet")
    assert load_questions(folder).idx == load_questions(folder, split="test").idx
    assert len(load_questions(folder)) == 2
    assert refusal(folder, split="train") == f'"{folder}" has no split "train"; dataset_split can be: test'


@pytest.mark.parametrize("ending", ["", "-a09b74b3ef9c3b56"])
def test_a_split_that_lacks_shards_is_warned_of(tmp_path, ending):
    """One that is whole is not, nor a file that is named by itself."""
    folder = folder_of(tmp_path, f"train-00001-of-00003{ending}.parquet", f"test-00000-of-00001{ending}.parquet")
    told = f'"{folder}" has 1 of the 3 files train-#####-of-00003: what the others hold is not asked'
    assert load_questions(folder, split="train").warnings == [told]
    assert load_questions(folder, split="test").warnings == []
    assert not load_questions(f"{folder}/train-00001-of-00003{ending}.parquet").warnings


@pytest.mark.parametrize(
    "names",
    [
        ["a.parquet", "b.parquet"],
        ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"],
        ["latest.parquet", "contest.parquet", "training-set-of-words.parquet"][:2],
        ["trains.parquet", "devices.parquet"],
    ],
)
def test_a_folder_whose_names_tell_no_split_is_one_dataset(tmp_path, names):
    folder = folder_of(tmp_path, *names)
    assert load_questions(folder).idx == load_questions(folder, split="train").idx == sorted(names)
    assert refusal(folder, split="test").startswith(f'dataset_split "test": no file name in "{folder}" tells a split')


def test_files_without_a_split_beside_those_of_one_are_named(tmp_path):
    folder = folder_of(tmp_path, "train.parquet", "mine.parquet")
    assert refusal(folder) == (
        f'dataset_path "{folder}" holds files of the split train and files of none (mine.parquet); '
        "choose a split with --dataset_split, or move the others away"
    )
    assert load_questions(folder, split="train").idx == ["train.parquet"]


def test_the_data_folder_of_a_dataset_of_the_hub_is_found(tmp_path):
    folder_of(tmp_path / "data", "train-00000-of-00001.parquet", "test-00000-of-00001.parquet")
    (tmp_path / "README.md").touch()
    assert load_questions(str(tmp_path), split="test").idx == ["test-00000-of-00001.parquet"]
    assert "has several splits: test, train;" in refusal(str(tmp_path))


def test_a_folder_says_what_in_it_could_be_meant(tmp_path):
    folder_of(tmp_path / "both" / "train", "0.parquet")
    assert refusal(str(tmp_path / "both")).endswith("; its folders train have: name one of them as --dataset_path")
    (tmp_path / "lines").mkdir()
    write_jsonl(tmp_path / "lines" / "q.jsonl", {"idx": 1})
    assert refusal(str(tmp_path / "lines")).endswith(
        "to read one of its files, name the file as --dataset_path: q.jsonl"
    )


def test_a_folder_of_folders_of_text_files_names_them(tmp_path):
    """As imagefolder and MMPR have them."""
    (tmp_path / "data/annotations").mkdir(parents=True)
    write_jsonl(tmp_path / "data/annotations/q.jsonl", {"idx": 1})
    (tmp_path / "data/annotations/a.jpg").touch()
    # What is about a dataset is no file of it.
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert refusal(str(tmp_path)).endswith(
        "; to read one of the files in its folders, name the file as --dataset_path: data/annotations/q.jsonl"
    )


ASK = 'to ask the same about each of its pictures, say so: --question "Describe the picture."'


@pytest.mark.parametrize(
    ("name", "told"),
    [("00000.tar", "docs/datasets.md shows how pictures in tar files are asked about"), ("a.JPG", ASK),
     ("train/cat/a.jpg", ASK)],
)  # fmt: skip
def test_a_folder_of_pictures_alone_is_told_what_to_do(tmp_path, name, told):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    held = name.partition("/")[0]
    assert refusal(str(tmp_path)).endswith(f"; it holds {held}; {told}")


def test_what_lies_beside_the_files_of_a_dataset_is_not_looked_through(tmp_path, monkeypatch):
    """Pictures may be hundreds of thousands."""
    folder = folder_of(tmp_path, "a.parquet")
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: pytest.fail(f"looked for {pattern}"))
    assert load_questions(folder).idx == ["a.parquet"]


def test_the_dataset_info_of_llama_factory_hides_no_file(tmp_path):
    write(tmp_path / "mine.parquet", [1])
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "mine.parquet"}}')
    assert load_questions(str(tmp_path)).idx == [1]


# Folders of save_to_disk


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """one: 40 rows; dict: train and test; alone: train; half_empty: train and an empty test."""
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    uncast = datasets.Dataset.from_list(table([str(i) for i in range(40)]).to_pylist())
    one = uncast.cast_column("image", datasets.Image())
    one.save_to_disk(folder / "one")
    # Without a column of pictures, with which datasets writes no folder without rows before 5.2.
    none = uncast.select([])
    none.save_to_disk(folder / "none")
    uncast.filter(lambda idx: False, input_columns="idx").save_to_disk(folder / "filtered")
    datasets.DatasetDict({"train": one, "test": one.select([30, 5])}).save_to_disk(folder / "dict")
    datasets.DatasetDict({"test": one.select([3])}).save_to_disk(folder / "alone")
    datasets.DatasetDict({"train": one.select([3]), "test": none}).save_to_disk(folder / "half_empty")
    return folder


def test_splits_of_a_datasets_folder_are_chosen_by_name_or_are_the_only_one(saved):
    assert refusal(str(saved / "dict")).endswith("has several splits: train, test; choose one with --dataset_split")
    assert load_questions(str(saved / "dict"), split="test").idx == ["30", "5"]
    assert load_questions(str(saved / "alone")).idx == load_questions(str(saved / "alone"), split="test").idx == ["3"]
    assert refusal(str(saved / "alone"), split="train").endswith('no split "train"; dataset_split can be: test')
    assert len(load_questions(str(saved / "one"))) == len(load_questions(str(saved / "one"), split="train")) == 40
    assert refusal(str(saved / "one"), split="test").endswith('no split "test"; dataset_split can be: train')


@pytest.mark.parametrize("name", ["none", "filtered"])
def test_a_datasets_folder_without_rows_is_refused(saved, name):
    assert refusal(str(saved / name)) == f'dataset "{saved / name}" has no rows'


def test_a_split_without_rows_hides_no_other(saved):
    folder = saved / "half_empty"
    assert load_questions(str(folder), split="train").idx == ["3"]
    assert refusal(str(folder), split="test") == f'dataset "{folder / "test"}" has no rows'


def damage_json(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def cut(keep: float):
    def damage(folder: Path) -> None:
        (file,) = folder.glob("*.arrow")
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])

    return damage


def overwrite(folder: Path) -> None:
    (file,) = folder.glob("*.arrow")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 3] + b"\xff" * (len(data) // 3) + data[len(data) // 3 * 2 :])


DAMAGES = {
    "state is no JSON": damage_json("state.json", "{"),
    "state is a list": damage_json("state.json", "[]"),
    "state is empty": damage_json("state.json", "{}"),
    "state names nothing": damage_json("state.json", '{"_data_files": [{"filename": "no.arrow"}]}'),
    "state is no text": damage_json("state.json", "\ufffd"),
    "info is no JSON": damage_json("dataset_info.json", "{"),
    "info is a list": damage_json("dataset_info.json", "[]"),
    "info of another kind": damage_json("dataset_info.json", '{"features": {"idx": {"_type": "Nothing"}}}'),
    "info of other columns": damage_json(
        "dataset_info.json", '{"features": {"idx": {"dtype": "int64", "_type": "Value"}}}'
    ),
    "file is missing": lambda folder: [file.unlink() for file in folder.glob("*.arrow")],
    "file is empty": cut(0),
    "file is cut early": cut(0.01),
    "file is cut": cut(0.5),
    "file is cut late": cut(0.99),
    "file is a folder": lambda folder: [(file.unlink(), file.mkdir()) for file in folder.glob("*.arrow")],
    "file is another one": lambda folder: [file.write_text("hello" * 99) for file in folder.glob("*.arrow")],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_broken_datasets_folder_is_refused_whatever_the_library_raises(saved, tmp_path, damage):
    shutil.copytree(saved / "one", tmp_path / "one")
    damage(tmp_path / "one")
    assert f'"{tmp_path}/one' in refusal(str(tmp_path / "one"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"splits": 3}', '{"splits": []}', '{"splits": ["train", "no"]}'])
def test_a_broken_dict_of_splits_is_refused(saved, tmp_path, text):
    shutil.copytree(saved / "dict", tmp_path / "dict")
    (tmp_path / "dict/dataset_dict.json").write_text(text)
    assert f'"{tmp_path}/dict"' in refusal(str(tmp_path / "dict"))
    assert f'"{tmp_path}/dict"' in refusal(str(tmp_path / "dict"), split="no")


def test_memory_that_ran_out_is_no_fault_of_the_folder(saved, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_from_disk", lambda path: pa.allocate_buffer(1 << 62))
    with pytest.raises(MemoryError):
        load_questions(str(saved / "one"))


def test_an_arrow_file_that_ends_between_two_batches_is_cut_off(saved, tmp_path):
    shutil.copytree(saved / "one", tmp_path / "one")
    (file,) = (tmp_path / "one").glob("*.arrow")
    # The stream's end mark alone is gone: without it, fewer batches look like all of them.
    file.write_bytes(file.read_bytes()[:-8])
    assert refusal(str(tmp_path / "one")) == f'dataset file "{file}" is cut off; copy or save it again'


def test_data_that_is_broken_is_found_on_reading_at_the_latest(saved, tmp_path):
    shutil.copytree(saved / "one", tmp_path / "one")
    overwrite(tmp_path / "one")
    with pytest.raises(UserError, match=f'"{tmp_path}/one'):
        list(load_questions(str(tmp_path / "one")).rows(range(40)))


def test_an_offset_that_points_out_of_the_file_is_no_segmentation_fault(saved, tmp_path):
    shutil.copytree(saved / "one", tmp_path / "one")
    (file,) = (tmp_path / "one").glob("*.arrow")
    # "question 0" to "question 9" have 10 bytes each.
    whole, broken = (struct.pack("<4i", *offsets) for offsets in ((0, 10, 20, 30), (0, 10, 1 << 30, 30)))
    data = file.read_bytes()
    assert data.count(whole) == 1
    file.write_bytes(data.replace(whole, broken))
    with pytest.raises(UserError, match=f'^dataset "{tmp_path}/one" is broken: '):
        list(load_questions(str(tmp_path / "one")).rows(range(40)))


def test_two_columns_of_one_name_in_datasets_are_refused(saved, tmp_path):
    shutil.copytree(saved / "one", tmp_path / "one")
    (file,) = (tmp_path / "one").glob("*.arrow")
    columns = pa.ipc.open_stream(file.read_bytes()).read_all()
    columns = columns.append_column("question", columns["question"])
    with pa.ipc.new_stream(str(file), columns.schema) as writer:
        writer.write_table(columns)
    assert refusal(str(tmp_path / "one")).startswith(f'dataset_path "{tmp_path}/one" is not a whole folder of ')
    assert '"question"' in refusal(str(tmp_path / "one"))


@pytest.mark.parametrize("where", ["", "data"])
def test_a_folder_that_cannot_be_listed_is_told_from_an_empty_one(tmp_path, monkeypatch, where):
    """Path.glob finds nothing there with Python 3.13 and newer."""
    (tmp_path / "data").mkdir()
    listdir, scandir = os.listdir, os.scandir

    def failing(plain):
        def call(path="."):
            if Path(path) == tmp_path / where:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return plain(path)

        return call

    monkeypatch.setattr(os, "listdir", failing(listdir))
    monkeypatch.setattr(os, "scandir", failing(scandir))
    says = refusal(str(tmp_path))
    assert says.startswith(f'dataset_path "{tmp_path}" cannot be read: ')
    assert "Input/output error" in says
