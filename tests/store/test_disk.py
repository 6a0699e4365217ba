"""A disk that is full, read-only or failing stops a run politely."""

import errno
import json
import os
import shutil
from collections import deque
from types import SimpleNamespace

import pytest
import small_disks

from data_engine.commands.work_dir import told_of_disk
from data_engine.errors import UserError
from data_engine.stages import RunStages
from data_engine.store import disk, room
from data_engine.store.atomic import creating
from data_engine.store.claims import Claims

TROUBLES = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EFBIG", "ESTALE", "ESHUTDOWN", "ENOTCONN")


@pytest.mark.parametrize("number", [getattr(errno, name) for name in TROUBLES], ids=TROUBLES)
def test_the_disk_is_to_blame_for_these(number):
    assert disk.is_trouble(OSError(number, os.strerror(number), "x"))
    # As Arrow tells it.
    assert disk.is_trouble(OSError(f"Error writing bytes to file. Detail: [errno {number}] {os.strerror(number)}"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.ENOTDIR])
def test_the_disk_is_not_to_blame_for_these(number):
    assert not disk.is_trouble(OSError(number, os.strerror(number), "x"))


@pytest.mark.parametrize(
    ("file", "mend"),
    [
        ("runs/a/logs/rank-0.jsonl", "choose another work_dir"),
        # As where a library keeps a cache in a home that this user has not.
        ("/.cache/kernels", "have the library that it belongs to keep its files elsewhere"),
    ],
)
def test_another_work_dir_is_the_mend_for_a_closed_file_of_this_one_alone(file, mend, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    told = str(disk.forbidden(OSError(errno.EACCES, "Permission denied", file), tmp_path / "runs/a"))
    assert told.startswith(f'"{file}" cannot be read or written: Permission denied. Where it is of another user, ')
    assert told.endswith(f"have it given to this one, or {mend}")


def test_what_is_needed_is_told_by_the_units_that_are_there(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text(json.dumps({"units": {"num_units": 10}}))
    there = {"sampled_answer": (3_000_000, 1_000_000), "instruct_logps": (500_000,), "yesno": (100_000,)}
    for stage, sizes in there.items():
        (tmp_path / stage).mkdir()
        for unit, size in enumerate(sizes):
            (tmp_path / stage / f"unit-{unit:05d}.parquet").write_bytes(bytes(size))
    # 8 more of 2 MB, 9 more of 0.5 MB; of the third stage nothing is known, and the fourth is another start's
    assert disk.needed_bytes(tmp_path, RunStages()) == 20_500_000
    told = disk.describe(OSError(errno.ENOSPC, "No space left on device", "/somewhere"), tmp_path, RunStages())
    assert told.startswith('cannot write "/somewhere": No space left on device. Every published unit is kept')
    assert "need more than 20.5 MB more, " in told
    assert told.endswith(f' MB are free on the file system of "{tmp_path}"')
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3_000_000))
    told = disk.describe(OSError(errno.ENOSPC, "No space left on device", "/somewhere"), tmp_path, RunStages())
    assert told.endswith(
        f'need more than 20.5 MB more, 3.0 MB are free on the file system of "{tmp_path}": 17.5 MB are missing'
    )
    assert disk.needed_bytes(tmp_path, RunStages(sources=("implicit", "yesno"))) == 21_400_000
    # Of a quota, what is free on the file system says nothing; of a disk that fails, neither figure does.
    told = disk.describe(OSError(errno.EDQUOT, "Disk quota exceeded", "/somewhere"), tmp_path, RunStages())
    assert told.endswith("run the same command again. The units that are left need more than 20.5 MB more")
    told = disk.describe(OSError(errno.EIO, "Input/output error", "/somewhere"), tmp_path, RunStages())
    assert told.endswith("run the same command again")
    # One of 0.5 MB in the third stage, and 9 more of it.
    (tmp_path / "reward_logps").mkdir()
    (tmp_path / "reward_logps/unit-00000.parquet").write_bytes(bytes(500_000))
    told = disk.describe(OSError(errno.ENOSPC, "No space left on device", "/somewhere"), tmp_path, RunStages())
    assert "need about 25.0 MB more, " in told


def test_a_full_disk_that_has_room_and_no_inodes_is_told_as_one(tmp_path):
    with small_disks.small_disk(tmp_path, "size=50m,nr_inodes=40") as small:
        # The folder of the file system itself, this one and run.json take three of 40.
        work_dir = small / "work"
        work_dir.mkdir()
        (work_dir / "run.json").write_text(json.dumps({"units": {"num_units": 10}}))
        with pytest.raises(OSError, match="No space left on device") as failed:
            deque((work_dir / f"unit-{unit:05d}.parquet").write_bytes(bytes(1000)) for unit in range(40))
        (work_dir / "unit-00000.parquet").unlink()
        told = (
            f'. The file system of "{work_dir}" has room, but is short of inodes (1 free, see df -i): remove files '
            "there, or choose another one"
        )
        failure = failed.value
        assert disk.describe(failure, work_dir, RunStages()).endswith(f"run the same command again{told}")
        with pytest.raises(UserError) as refused, told_of_disk(work_dir):
            raise failure
        assert str(refused.value).endswith(f": No space left on device{told}")
        # Of a quota, or where there is no room either, it is not what is lacking.
        assert room.told_of_inodes(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), work_dir) == ""
        (work_dir / "unit-00001.parquet").write_bytes(bytes(shutil.disk_usage(small).free - 2**19))
        assert room.told_of_inodes(failure, work_dir) == ""


def test_a_run_that_has_not_begun_is_told_what_failed_alone(tmp_path):
    assert disk.needed_bytes(tmp_path, RunStages()) == 0
    told = disk.describe(OSError(errno.EROFS, "Read-only file system"), tmp_path, RunStages())
    assert told.endswith("run the same command again")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_named_before_anything_is_computed(tmp_path, monkeypatch, number):
    def link(source, target):
        raise OSError(number, os.strerror(number), str(source))

    monkeypatch.setattr(os, "link", link)
    told = f'the file system of "{tmp_path}.*" has no hard links \\({os.strerror(number)}\\)'
    with pytest.raises(UserError, match=told), creating(tmp_path / "unit") as beside:
        beside.write_text("result")
    with pytest.raises(UserError, match=told), Claims(tmp_path, 0).hold("sampled_answer", 0):
        pass
    assert not (tmp_path / "unit").exists()
