"""A row of a dataset: which questions and images are problems of it, and which paths are opened."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from question_files import only, refusal, write

from data_engine.questions.dataset import Questions, load_questions
from data_engine.questions.sources.hub import DatasetsSource
from data_engine.schemas import IMAGE

PHOTOS = Path(__file__).parents[3] / "shared/photos/questions.parquet"


def test_a_question_that_nobody_could_answer_is_a_problem(tmp_path):
    texts = pa.array(["a" * (1 << 20), "a" * ((1 << 20) + 1)])
    first, second = load_questions(write(tmp_path / "q.parquet", [1, 2], question=texts)).rows(range(2))
    assert first.problem is None
    assert second.problem == "question has 1048577 bytes, more than 1048576"


def test_a_null_question_is_a_problem_and_an_empty_one_is_not(tmp_path):
    path = write(tmp_path / "q.parquet", [1, 2], question=pa.array([None, ""]))
    null, empty = load_questions(path).rows(range(2))
    assert (null.question, null.problem) == (None, "question is null")
    assert (empty.question, empty.problem, empty.image) == ("", None, b"image 1")


def test_a_question_that_is_not_unicode_is_a_problem(tmp_path):
    broken = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    row = only(load_questions(write(tmp_path / "q.parquet", [1], question=broken)))
    assert (row.question, row.problem) == (None, "question is not valid UTF-8")


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}])
def test_a_row_without_image_has_a_problem_and_the_next_row_goes_on(tmp_path, cell):
    images = pa.array([cell, {"bytes": b"x", "path": None}], IMAGE)
    first, second = load_questions(write(tmp_path / "q.parquet", [1, 2], image=images)).rows(range(2))
    assert (first.image, first.problem) == (None, "row has no image: neither bytes nor a path")
    assert (second.image, second.problem) == (b"x", None)


def path_row(tmp_path: Path, path: str, image_root: Path | None):
    images = pa.array([{"bytes": None, "path": path}], IMAGE)
    root = None if image_root is None else str(image_root)
    return only(load_questions(write(tmp_path / "q.parquet", [1], image=images), image_root=root))


def test_a_path_is_never_opened_without_image_root(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"x")
    row = path_row(tmp_path, str(tmp_path / "x.jpg"), None)
    assert (row.image, row.problem) == (None, "image has no bytes, and its path is not opened without image_root")


def test_an_address_is_named_as_one_though_no_image_root_is_given(tmp_path):
    row = path_row(tmp_path, "https://host/x.jpg", None)
    assert row.problem.startswith(
        'image path "https://host/x.jpg" is an address; only files under image_root are opened'
    )
    assert not row.missing


@pytest.mark.parametrize("absolute", [True, False])
def test_a_path_inside_image_root_is_read(tmp_path, absolute):
    (tmp_path / "root/deep").mkdir(parents=True)
    (tmp_path / "root/deep/x.jpg").write_bytes(b"x")
    path = str(tmp_path / "root/deep/x.jpg") if absolute else "deep/../deep/x.jpg"
    row = path_row(tmp_path, path, tmp_path / "root")
    assert (row.image, row.image_path, row.problem) == (b"x", path, None)


def test_a_link_inside_image_root_is_followed(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/x.jpg").write_bytes(b"x")
    (tmp_path / "root/link.jpg").symlink_to("x.jpg")
    assert path_row(tmp_path, "link.jpg", tmp_path / "root").image == b"x"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("../secret.jpg", 'image path "../secret.jpg" leads outside image_root'),
        (
            "link.jpg",
            'image path "link.jpg" leads outside image_root by a link: copy the files themselves there, as cp',
        ),
        ("/etc/hostname", 'image path "/etc/hostname" leads outside image_root'),
        ("no.jpg", 'image path "no.jpg" is not a readable file under image_root'),
        ("folder", 'image path "folder" is not a readable file under image_root'),
        ("pipe", 'image path "pipe" is not a readable file under image_root'),
        ("loop", 'image path "loop" is not a readable file under image_root'),
        ("x" * 300, "is not a readable file under image_root"),
        ("nul\0.jpg", "is not a readable file under image_root"),
        ("https://host/x.jpg", 'image path "https://host/x.jpg" is an address; only files under image_root are opened'),
    ],
)
def test_any_other_path_is_a_problem_of_its_row(tmp_path, path, says):
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    row = path_row(tmp_path, path, root)
    assert row.image is None
    assert says in row.problem
    assert ("by a link" in row.problem) == (path == "link.jpg")


@pytest.mark.parametrize("root", [".", "pictures/..", ""])
def test_a_link_that_leads_out_of_the_current_folder_is_told_to_be_one(tmp_path, monkeypatch, root):
    (tmp_path / "here/pictures").mkdir(parents=True)
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "here/pictures/x.jpg").symlink_to(tmp_path / "x.jpg")
    monkeypatch.chdir(tmp_path / "here")
    assert "by a link: copy the files" in path_row(tmp_path, "pictures/x.jpg", Path(root)).problem


def test_a_path_that_begins_with_image_root_itself_is_told_to_be_under_the_folder_above(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/x.jpg").write_bytes(b"x")
    row = path_row(tmp_path, "photos/x.jpg", tmp_path / "photos")
    assert row.problem == (
        'image path "photos/x.jpg" is not a readable file under image_root; it is one under the folder above: give '
        f'"{tmp_path}" as image_root'
    )
    assert path_row(tmp_path, "photos/x.jpg", tmp_path).image == b"x"
    assert "above" not in path_row(tmp_path, "photos/y.jpg", tmp_path / "photos").problem


def test_a_path_that_begins_with_several_folders_of_image_root_is_told_so_too(tmp_path):
    """LLaVA's paths begin with coco/train2017."""
    (tmp_path / "coco/train2017").mkdir(parents=True)
    (tmp_path / "coco/train2017/x.jpg").write_bytes(b"x")
    problem = path_row(tmp_path, "coco/train2017/x.jpg", tmp_path / "coco/train2017").problem
    assert problem.endswith(f'; it is one under the folder above: give "{tmp_path}" as image_root')
    assert "above" not in path_row(tmp_path, "coco/val2017/x.jpg", tmp_path / "coco/train2017").problem


@pytest.mark.parametrize(
    ("path", "file", "how"),
    [
        ("caf\u00e9.jpg", "cafe\u0301.jpg", "in the Unicode form NFD"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg", "in the Unicode form NFC"),
        ("a.jpg", "a.JPG", "with its ending in capitals"),
        ("a.JPG", "a.jpg", "with its ending in small letters"),
        ("in\\a.jpg", "in/a.jpg", "with / for \\"),
        ("in/a%20b.jpg", "in/a b.jpg", "with its %-codes decoded"),
    ],
)
def test_a_path_that_is_a_file_in_another_spelling_is_told_so(tmp_path, path, file, how):
    (tmp_path / "in").mkdir()
    (tmp_path / file).write_bytes(b"x")
    row = path_row(tmp_path, path, tmp_path)
    assert row.missing
    assert row.problem.endswith(
        f" is not a readable file under image_root; written {how} it is one: write the path so, or rename the file"
    )
    assert path_row(tmp_path, file, tmp_path).image == b"x"


@pytest.mark.parametrize("path", ["..\\a.jpg", "%2e%2e/a.jpg"])
def test_no_spelling_is_proposed_that_leads_out_of_image_root(tmp_path, path):
    (tmp_path / "root").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert path_row(tmp_path, path, tmp_path / "root").problem.endswith("is not a readable file under image_root")


def test_image_root_must_be_a_folder(tmp_path):
    path = write(tmp_path / "q.parquet", [1])
    assert refusal(path, image_root=str(tmp_path / "no")) == f'image_root "{tmp_path}/no" is not a folder'


def test_an_image_column_of_datasets_opens_no_path():
    import datasets

    rows = [{"idx": 1, "question": "q", "image": {"bytes": None, "path": "/etc/hostname"}}]
    dataset = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    row = only(Questions(DatasetsSource(dataset), "dataset"))
    assert (row.image, row.image_path) == (None, "/etc/hostname")
    assert row.problem == "image has no bytes, and its path is not opened without image_root"


@pytest.mark.skipif(not PHOTOS.exists(), reason=f"real photographs are not there: {PHOTOS.name}")
def test_real_photographs_are_read(tmp_path):
    questions = load_questions(str(PHOTOS))
    rows = list(questions.rows(range(32)))
    assert (len(questions), rows[0].idx, rows[0].image[:3]) == (32, "photo-00-0", b"\xff\xd8\xff")
    assert {row.problem for row in rows} == {None}
