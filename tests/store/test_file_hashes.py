"""Hashes of whole files: taken once, by one process, and taken again where a file was touched."""

import hashlib
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from data_engine.errors import UserError
from data_engine.models.checkpoints.checkpoint import fingerprint
from data_engine.store import file_hashes
from data_engine.store.claims import Claims
from data_engine.store.file_hashes import FileHashes

GOLDENS = Path(__file__).parents[1] / "goldens/llava"


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The files that are read as a whole."""
    found, hash_file = [], file_hashes.hash_file
    monkeypatch.setattr(file_hashes, "hash_file", lambda file, tell: found.append(file) or hash_file(file, tell))
    return found


def hashes(work_dir: Path) -> FileHashes:
    return FileHashes(work_dir, Claims(work_dir, 0))


def test_a_hash_is_that_of_all_bytes_and_is_taken_once(tmp_path, reads):
    file = tmp_path / "a"
    file.write_bytes(os.urandom(file_hashes.CHUNK_BYTES + 17))
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert hashes(tmp_path / "work")([file, file]) == [expected, expected]
    assert hashes(tmp_path / "work")([file]) == [expected]
    assert reads == [file]
    assert list((tmp_path / "work/claims").iterdir()) == []


def test_a_file_that_was_touched_is_hashed_again(tmp_path, reads):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    before = hashes(tmp_path / "work")([file])
    status = file.stat()
    file.write_bytes(b"two")
    # Same size and, by whoever restored them, the same times of content: the change of the inode tells.
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hashes(tmp_path / "work")([file]) == [hashlib.sha256(b"two").hexdigest()] != before
    assert len(reads) == 2


def test_a_file_elsewhere_that_is_named_like_one_of_the_hubs_cache_is_hashed(tmp_path):
    file = tmp_path / ("0" * 64)
    file.write_bytes(b"weights")
    assert hashes(tmp_path / "work")([file]) == [hashlib.sha256(b"weights").hexdigest()]


def test_a_file_of_the_hubs_cache_is_named_by_its_hash_and_not_read(tmp_path, reads):
    name = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / name).write_bytes(b"weights")
    (tmp_path / "snapshots").mkdir()
    link = tmp_path / "snapshots/model.safetensors"
    link.symlink_to(tmp_path / "blobs" / name)
    assert hashes(tmp_path / "work")([link]) == [name]
    assert reads == []
    # A copy elsewhere is the same file.
    (tmp_path / "copy").write_bytes(b"weights")
    assert hashes(tmp_path / "work")([tmp_path / "copy"]) == [name]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    monkeypatch.setattr(file_hashes, "hash_file", lambda *_: file.write_bytes(b"longer") and "hash")
    with pytest.raises(UserError, match="changed while it was read"):
        hashes(tmp_path / "work")([file])
    assert list((tmp_path / "work").glob("hashes/*")) == []


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r'a" cannot be read: No such file'):
        hashes(tmp_path / "work")([tmp_path / "a"])


def test_a_record_that_is_broken_is_written_again(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    expected = hashes(tmp_path / "work")([file])
    [record] = (tmp_path / "work/hashes").iterdir()
    record.write_text("{")
    assert hashes(tmp_path / "work")([file]) == expected
    assert json.loads(record.read_text())["sha256"] == expected[0]


def _start(work_dir: Path, files: list[Path], results) -> None:
    read = []
    hash_file = file_hashes.hash_file

    def slow(file, tell):
        read.append(file.name)
        time.sleep(0.3)
        return hash_file(file, tell)

    file_hashes.hash_file = slow
    results.put((FileHashes(work_dir, Claims(work_dir, 0))(files), read))


def test_of_several_ranks_each_file_is_read_by_one(tmp_path):
    files = [tmp_path / name for name in "abcd"]
    for file in files:
        file.write_bytes(file.name.encode() * 100)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_start, args=(tmp_path / "work", files, results)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    expected = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert [hashed for hashed, _ in found] == [expected] * 3
    assert sorted(name for _, read in found for name in read) == list("abcd")


def test_the_folder_of_a_model_is_known_by_content_alone(tmp_path):
    """Not by where it lies, nor by files that nothing reads."""

    def of(*folders: Path) -> str:
        return fingerprint(folders, file_hashes.hash_files)

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (GOLDENS / "reward").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "README.md").write_text("about it")
    assert of(copy) == of(GOLDENS / "reward") != of(GOLDENS / "instruct")
    for name in ("chat_template.jinja", "preprocessor_config.json", "added_tokens.json"):
        before = of(copy)
        (copy / name).write_text("{}")
        assert of(copy) != before
