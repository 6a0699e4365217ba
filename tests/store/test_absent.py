"""Whether a file is there, on a file system that fails, and whether pathlib says the same on one that does not."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_engine.models.checkpoints.checkpoint import content_files
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.checkpoints.weight_files import located
from data_engine.pipeline import pair
from data_engine.store import absent, units
from data_engine.store.folders import sync_files

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
FAILS = (errno.EIO, errno.EACCES, errno.ENAMETOOLONG, errno.ETIMEDOUT)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in (".hidden", "a.json", "b.json", "b.txt", "deep/c.json", "deep/er/d.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "file").symlink_to("a.json")
    (tmp_path / "folder").symlink_to("deep")
    (tmp_path / "nothing").symlink_to("gone")
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


def failing(monkeypatch, call: str, number: int, place: str) -> None:
    """That call of the system fails for whatever has this name; pathlib of no version keeps a copy of it."""
    real = getattr(os, call)

    def fail(path=".", *given, **named):
        if os.path.basename(path) == place:
            raise OSError(number, os.strerror(number), path)
        return real(path, *given, **named)

    monkeypatch.setattr(os, call, fail)


def test_on_a_file_system_that_works_they_say_what_pathlib_says(folder):
    for path in [*folder.rglob("*"), folder, folder / "gone", folder / "a.json/x", folder / "zero\0byte"]:
        assert absent.is_there(path) == path.exists()
        assert absent.is_file(path) == path.is_file()
    for pattern in ("*", "*.json", "b.*", "a.json", "gone", "deep/*", "deep/c.json", "gone/*", "a.json/*"):
        assert absent.matching(folder, pattern) == sorted(folder.glob(pattern))
    assert absent.all_below(folder) == sorted(folder.rglob("*"))
    assert not absent.is_there(folder / "zero\0byte")
    assert not absent.is_there(folder / "circle")


@pytest.mark.parametrize("number", ABSENT)
def test_what_is_gone_is_not_there(folder, monkeypatch, number):
    failing(monkeypatch, "stat", number, "a.json")
    failing(monkeypatch, "listdir", number, "deep")
    assert not absent.is_there(folder / "a.json")
    assert not absent.is_file(folder / "a.json")
    assert absent.matching(folder, "deep/*") == []


@pytest.mark.parametrize("number", FAILS)
def test_what_cannot_be_told_is_an_error(folder, monkeypatch, number):
    for call, name in (("stat", "a.json"), ("listdir", "deep"), ("scandir", "er")):
        failing(monkeypatch, call, number, name)
    told = os.strerror(number)
    for ask in (absent.is_there, absent.is_file):
        with pytest.raises(OSError, match=told):
            ask(folder / "a.json")
    with pytest.raises(OSError, match=told):
        absent.matching(folder, "deep/*")
    with pytest.raises(OSError, match=told):
        absent.all_below(folder)
    with pytest.raises(OSError, match=told):
        sync_files(folder / "deep")


def test_a_unit_that_cannot_be_looked_for_is_not_computed_again(tmp_path, monkeypatch):
    """The listing of a shared file system may be old; what it lacks is asked for by name."""
    (tmp_path / "sampled_answer").mkdir()
    assert units.missing(tmp_path, "sampled_answer", range(2)) == [0, 1]
    failing(monkeypatch, "stat", errno.EIO, "unit-00001.parquet")
    with pytest.raises(OSError, match="Input/output error"):
        units.missing(tmp_path, "sampled_answer", range(2))


def test_a_dataset_stays_where_the_pairs_that_it_would_lose_cannot_be_looked_up(tmp_path, monkeypatch):
    gone = SimpleNamespace(without_source={"q3"}, first_gone="idx 'q3'")
    pair._require_sources(tmp_path, gone)
    failing(monkeypatch, "stat", errno.EIO, "pairs.parquet")
    with pytest.raises(OSError, match="Input/output error"):
        pair._require_sources(tmp_path, gone)


def test_of_two_files_of_weights_the_second_does_not_stand_in_for_one_that_cannot_be_looked_up(tmp_path, monkeypatch):
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"x")
    failing(monkeypatch, "stat", errno.EIO, "model.safetensors")
    with pytest.raises(OSError, match="Input/output error"):
        located(tmp_path)


def test_the_content_of_a_checkpoint_is_never_that_of_half_a_listing(tmp_path, monkeypatch):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(b"x")
    assert content_files(tmp_path) == [tmp_path / "model.safetensors", tmp_path / "config.json"]
    failing(monkeypatch, "listdir", errno.EIO, tmp_path.name)
    failing(monkeypatch, "scandir", errno.EIO, tmp_path.name)
    with pytest.raises(ModelError, match="cannot be listed: Input/output error"):
        content_files(tmp_path)
