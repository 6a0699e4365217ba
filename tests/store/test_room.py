"""What is said of the room that a full disk lacks, while pairs and exports are written."""

import errno
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import small_disks
from export_run import finish
from PIL import Image
from run_files import png
from stage2_world import make_world

from data_engine.commands import main
from data_engine.preferences import candidates
from data_engine.store import room
from data_engine.store.folders import part_of, scratch_folder

Usage = namedtuple("Usage", "total used free")


def full(number=errno.ENOSPC):
    return OSError(number, os.strerror(number), "/somewhere")


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes are free on every file system."""

    def give(number):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, number))

    return give


def test_what_is_left_of_the_work_is_counted_in_proportion(tmp_path, free):
    (tmp_path / "a").write_bytes(bytes(3_000_000))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/b").write_bytes(bytes(1_000_000))
    with pytest.raises(room.NoRoomError) as caught, room.counted(tmp_path, lambda: 0.25):
        raise full()
    # 4 MB are a quarter.
    free(5_000_000)
    assert room.told(caught.value) == (
        f'; about 16.0 MB are needed, 5.0 MB are free on the file system of "{tmp_path.parent}": 11.0 MB are missing'
    )
    assert (caught.value.filename, caught.value.strerror) == ("/somewhere", "No space left on device")


def test_the_files_of_each_folder_are_counted_once_though_the_inner_one_is_gone(tmp_path, free):
    def write():
        with scratch_folder(tmp_path, "pairing") as scratch:
            (scratch / "before").write_bytes(bytes(2_000_000))
            with part_of(scratch, "part") as part:
                (part / "beside").write_bytes(bytes(500_000))
                (part / "own").mkdir()
                with room.counted(part / "own", lambda: 0.5):
                    (part / "own/half").write_bytes(bytes(1_000_000))
                    raise full()

    with pytest.raises(room.NoRoomError) as caught:
        write()
    assert not list(tmp_path.iterdir())
    # 1 MB is half; 0.5 and 2 MB lie beside it.
    assert caught.value.needed_bytes == 4_500_000
    free(1_000_000)
    assert room.told(caught.value).endswith(f'of "{tmp_path}": 3.5 MB are missing')


def test_what_is_not_known_is_not_said(tmp_path, free):
    (tmp_path / "a").write_bytes(bytes(2_000_000))
    with pytest.raises(room.NoRoomError) as caught, room.counted(tmp_path, lambda: 0.0):
        raise full(errno.EDQUOT)
    free(3_000_000)
    assert room.told(caught.value).startswith("; more than 2.0 MB are needed, 3.0 MB are free on the file system of ")
    # A quota is full, or a limit is reached.
    free(10**9)
    assert room.told(caught.value) == ""
    assert room.told(full()) == ""


def test_a_disk_that_does_not_say_what_is_free_hides_no_message(tmp_path, monkeypatch):
    def failing(path):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(shutil, "disk_usage", failing)
    assert room.told(room.NoRoomError(full(), tmp_path, 5)) == ""
    assert room.compared(5, tmp_path) == ""


def test_little_room_is_told_in_kilobytes(tmp_path, free):
    free(4_000)
    assert room.compared(8_192, tmp_path) == (
        f', 4.0 kB are free on the file system of "{tmp_path}": 4.2 kB are missing'
    )
    assert room.compared(99_950, tmp_path).endswith(": 96.0 kB are missing")
    assert room.megabytes(100_000) == "0.1 MB"


def test_arrow_tells_of_a_full_disk_in_words_and_other_errors_stay_as_they_are(tmp_path):
    words = "Error writing bytes to file. Detail: [errno 28] No space left on device"
    with pytest.raises(room.NoRoomError) as caught, room.counted(tmp_path):
        raise OSError(words)
    assert (caught.value.errno, caught.value.strerror) == (errno.ENOSPC, words)
    for error in (full(errno.EIO), full(errno.EFBIG), ValueError("a bug")):
        with pytest.raises(type(error)) as caught, room.counted(tmp_path):
            raise error
        assert caught.value is error


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    with small_disks.small_disk(tmp_path, "size=400k") as disk:
        yield disk


def figures(errors):
    """The megabytes that are needed, free and missing, of a message."""
    words = errors.split()
    return [float(words[at - 1]) for at, word in enumerate(words) if word == "MB"]


def test_an_export_to_a_full_disk_says_what_is_needed_and_missing(tmp_path, small_disk, capsys):
    noise = [{"bytes": noisy(number), "path": f"{number}.png"} for number in range(60)]
    work_dir = tmp_path / "work"
    finish(make_world(tmp_path / "world", num_questions=60, image=noise), work_dir)
    asked = ["export", str(work_dir), "--format", "trl", "--output"]
    assert main.main([*asked, str(small_disk / "out")]) == 2
    errors = capsys.readouterr().err
    assert "No space left on device; about " in errors
    assert f'are free on the file system of "{small_disk}": ' in errors
    needed, free, missing = figures(errors)
    assert missing == pytest.approx(needed - free, abs=0.11)
    # In so much room the export is made, and not in less: its rows lie there twice until the last of them is written.
    for megabytes, code in ((0.8 * needed, 2), (1.1 * needed, 0)):
        small_disks.with_room(small_disk, f"{int(1000 * megabytes)}k")
        assert main.main([*asked, str(small_disk / "out")]) == code, (megabytes, capsys.readouterr().err)
        if code:
            assert figures(capsys.readouterr().err)[0] == pytest.approx(needed, rel=0.25)
    size = sum(path.stat().st_size for path in (small_disk / "out").rglob("*.parquet")) / 1e6
    assert size > 1
    assert needed == pytest.approx(2 * size, rel=0.25)


def noisy(number):
    """A picture of noise, of about 20 kB."""
    values = np.random.default_rng(number).integers(0, 256, (80, 80, 3), np.uint8)
    return png(Image.fromarray(values))


def test_a_pairing_on_a_full_disk_says_what_is_needed_and_missing(tmp_path, small_disk, capsys, monkeypatch):
    small_disks.with_room(small_disk, "40m")
    # Else all candidates of so few questions are written at the end.
    monkeypatch.setattr(candidates, "BUFFER_ROWS", 500)
    work_dir = small_disk / "work"
    finish(make_world(tmp_path / "world", num_questions=200, num_answers=12), tmp_path / "work")
    shutil.copytree(tmp_path / "work", work_dir)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 200_000))
    arguments = ["pairs", str(work_dir), "--name", "wide", "--rank", "6"]
    assert main.main(arguments) == 2
    errors = capsys.readouterr().err
    assert f'are free on the file system of "{work_dir}": ' in errors
    needed, free, missing = figures(errors)
    assert missing == pytest.approx(needed - free, abs=0.11)
    filler.unlink()
    assert main.main(arguments) == 0
    # The candidates, and the file of pairs that is made of them.
    size = (work_dir / "pairs/wide.parquet").stat().st_size / 1e6
    assert size > 0.3
    assert needed == pytest.approx(2 * size, rel=0.25)
