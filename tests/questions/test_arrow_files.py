"""Arrow files: those of `datasets`, alone and as a folder, and those of other programs."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from question_files import refusal, table

from data_engine.questions.dataset import load_questions
from data_engine.store.file_hashes import hash_files


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """one: 40 rows, as save_to_disk writes them."""
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    rows = datasets.Dataset.from_list(table([str(i) for i in range(40)]).to_pylist())
    rows.cast_column("image", datasets.Image()).save_to_disk(folder / "one")
    return folder


def test_arrow_files_without_what_save_to_disk_writes_beside_them_are_read(saved, tmp_path):
    """As those of the cache of load_dataset, which never has it: as a folder, and each file alone."""
    shutil.copytree(saved / "one", tmp_path / "one")
    (tmp_path / "one/state.json").unlink()
    (file,) = (tmp_path / "one").glob("*.arrow")
    whole = load_questions(str(saved / "one"))
    for path in (tmp_path / "one", file):
        found = load_questions(str(path))
        assert [row.digest for row in found.rows(range(40))] == [row.digest for row in whole.rows(range(40))]
        assert found.fingerprint(hash_files) == whole.fingerprint(hash_files)
    shutil.copy(file, file.with_name("data-00001-of-00003.arrow"))
    file.rename(file.with_name("data-00000-of-00003.arrow"))
    assert refusal(str(tmp_path / "one")).startswith(f'dataset "{tmp_path}/one": every idx must be unique')
    file.with_name("data-00001-of-00003.arrow").write_bytes(other_ids(file.with_name("data-00000-of-00003.arrow")))
    two = load_questions(str(tmp_path / "one"))
    assert two.idx == [*whole.idx, *(f"other {idx}" for idx in whole.idx)]
    rows = list(two.rows(range(len(whole) - 1, len(whole) + 1)))
    assert [row.question for row in rows] == [f"question {len(whole) - 1}", "question 0"]
    assert two.warnings == [
        f'"{tmp_path}/one" has 2 of the 3 files data-#####-of-00003: what the others hold is not asked'
    ]


def other_ids(file: Path) -> bytes:
    """The same stream with other ids."""
    columns = pa.ipc.open_stream(file.read_bytes()).read_all()
    columns = columns.set_column(0, "idx", pa.array([f"other {idx}" for idx in columns["idx"].to_pylist()]))
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, columns.schema) as writer:
        writer.write_table(columns)
    return stream.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        # The name of a dataset of the hub may be, or have, a word for a split.
        (["my_test-train", "my_test-test"], "train", ["my_test-train"]),
        (["a-dev-train-00000-of-00002", "a-dev-train-00001-of-00002", "a-dev-dev"], "train",
         ["a-dev-train-00000-of-00002", "a-dev-train-00001-of-00002"]),
        (["a-en", "a-fr"], "fr", ["a-fr"]),
        (["train", "test"], "test", ["test"]),
        (["part-0", "part-1"], None, ["part-0", "part-1"]),
        (["a", "b"], None, ["a", "b"]),
        (["data-00000-of-00001"], None, ["data-00000-of-00001"]),
    ],
)  # fmt: skip
def test_the_split_of_an_arrow_file_stands_behind_its_last_hyphen(tmp_path, names, split, expected):
    for name in names:
        columns = pa.table({"idx": [name], "question": ["?"]})
        with pa.ipc.new_stream(str(tmp_path / f"{name}.arrow"), columns.schema) as writer:
            writer.write_table(columns)
    assert load_questions(str(tmp_path), split=split).idx == expected
    if split is not None:
        assert "has several splits: " in refusal(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_an_arrow_file_that_is_cut_off_is_refused(saved, tmp_path, keep):
    shutil.copytree(saved / "one", tmp_path / "one")
    (tmp_path / "one/state.json").unlink()
    (file,) = (tmp_path / "one").glob("*.arrow")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    for path in (tmp_path / "one", file):
        assert refusal(str(path)) == f'dataset file "{file}" is cut off; copy or save it again'


def test_arrow_files_of_other_columns_are_refused_together(tmp_path):
    for number, question in enumerate(["?", 2.5]):
        columns = pa.table({"idx": [number], "question": [question]})
        with pa.ipc.new_stream(str(tmp_path / f"part-{number}.arrow"), columns.schema) as writer:
            writer.write_table(columns)
    says = refusal(str(tmp_path))
    assert says.startswith(f'dataset files "{tmp_path}/part-0.arrow" to "{tmp_path}/part-1.arrow" have other columns')


def test_an_arrow_file_that_is_no_stream_is_told_the_way_to_convert_it(tmp_path):
    """As polars and pandas write them."""
    path = tmp_path / 'Jane\'s "own" $q.arrow'
    columns = pa.table({"idx": [1], "question": ["?"]})
    with pa.ipc.new_file(str(path), columns.schema) as writer:
        writer.write_table(columns)
    command = refusal(str(path)).partition("with .gz: ")[2]
    program = [sys.executable, *shlex.split(command)[1:]]
    subprocess.run(program, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    assert load_questions(str(tmp_path / f"{path.stem}.parquet")).idx == [1]
