"""Files that appear whole or not at all, whoever writes, sweeps or stands still meanwhile."""

import errno
import fcntl
import os
import time

import pyarrow as pa
import pytest

from data_engine.store import atomic, units


def test_sweeping_removes_what_dead_processes_left_of_published_units_only(tmp_path):
    units.publish(units.unit_path(tmp_path, "sampled_answer", 1), pa.table({"a": [1]}))
    folder = tmp_path / "sampled_answer"
    for name in (".unit-00001.parquet.0a", ".unit-00002.parquet.0b", "../.run.json.0c"):
        (folder / name).touch()
    units.sweep(tmp_path)
    assert sorted(file.name for file in folder.iterdir()) == [".unit-00002.parquet.0b", "unit-00001.parquet"]
    assert (tmp_path / ".run.json.0c").exists()
    (tmp_path / "run.json").touch()
    units.sweep(tmp_path)
    assert not (tmp_path / ".run.json.0c").exists()


def test_sweeping_removes_what_dead_processes_left_of_reports(tmp_path):
    """Also of the first one, which is not there yet."""
    for folder in ("report", "report/named", "report/compare/one/other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / ".index.html.0a").touch()
    (tmp_path / "report/named/index.html").touch()
    with atomic.replacing(tmp_path / "report/named/index.html") as beside:
        units.sweep(tmp_path)
        assert beside.exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["index.html"]


@pytest.mark.parametrize("writing", [atomic.replacing, atomic.creating])
def test_sweeping_leaves_what_a_living_process_is_writing(tmp_path, writing):
    (tmp_path / "run.json").write_text("{}")
    with writing(tmp_path / "run.json") as beside:
        beside.write_text("new")
        units.sweep(tmp_path)
        assert beside.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text() == ("new" if writing is atomic.replacing else "{}")


def test_without_locks_what_is_older_than_a_day_is_left_over(tmp_path, monkeypatch):
    def no_locks(_descriptor, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    (tmp_path / "run.json").touch()
    old, new = tmp_path / ".run.json.0a", tmp_path / ".run.json.0b"
    for path, hours in ((old, 25), (new, 23)):
        path.touch()
        os.utime(path, (time.time() - hours * 3600,) * 2)
    units.sweep(tmp_path)
    assert not old.exists()
    assert new.exists()
    with atomic.replacing(tmp_path / "run.json") as beside:
        beside.write_text("written all the same")
    assert (tmp_path / "run.json").read_text() == "written all the same"


def _replace(path):
    with atomic.replacing(path) as beside:
        beside.write_text("new")


@pytest.mark.parametrize("replace", [_replace, lambda path: atomic.rewrite(path, lambda: "new")])
def test_what_replaces_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_it_counts(
    tmp_path, steps_to_disk, replace
):
    path = tmp_path / "run.json"
    path.write_text("old")
    replace(path)
    new, *others = steps_to_disk
    assert new.startswith("sync .run.json.")
    assert others == ["run.json", f"sync {tmp_path.name}"]
    assert path.read_text() == "new"


def test_who_was_stopped_while_alone_with_a_file_holds_up_nobody_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "HELD_S", 0.1)
    (tmp_path / "run.json").touch()
    entered = []
    with atomic.alone_with(tmp_path / "run.json"):
        start = time.monotonic()
        with atomic.alone_with(tmp_path / "run.json"):
            entered.append(time.monotonic() - start)
        with atomic.replacing(tmp_path / "run.json"):
            pass
        # The file that was locked is another one by now.
        with atomic.alone_with(tmp_path / "run.json"):
            entered.append(time.monotonic() - start)
    assert 0.1 <= entered[0] < 10
    assert len(entered) == 2


def test_who_was_stopped_while_it_rewrote_a_file_keeps_what_others_wrote_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "HELD_S", 0.05)
    path = tmp_path / "run.json"
    path.write_text("first")

    def added():
        found = path.read_text()
        if found == "first":
            # The other one goes on without this one.
            atomic.rewrite(path, lambda: "first, other")
        return f"{found}, mine"

    atomic.rewrite(path, added)
    assert path.read_text() == "first, other, mine"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_swept_before_it_is_locked_is_created_again(tmp_path, monkeypatch):
    flock, taken = fcntl.flock, []

    def late(descriptor, operation):
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(atomic.fcntl, "flock", late)
    with atomic.creating(tmp_path / "run.json") as beside:
        assert beside.exists()
        assert beside != taken[0]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_what_was_swept_while_this_machine_was_away_is_dropped_for_what_is_there(tmp_path):
    """A file server forgets the locks of a machine that it does not hear of."""
    path = tmp_path / "run.json"
    with atomic.creating(path) as beside:
        path.write_text("the other's")
        beside.unlink()
    assert path.read_text() == "the other's"
    path.unlink()
    with pytest.raises(FileNotFoundError), atomic.creating(path) as beside:
        beside.unlink()
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_host_replaced_while_it_was_read_is_read_anew(tmp_path, monkeypatch):
    path, read, times = tmp_path / "run.json", type(tmp_path).read_text, []
    path.write_text("new")

    def stale(self, *rest):
        times.append(self)
        if len(times) <= fails:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return read(self, *rest)

    monkeypatch.setattr(type(tmp_path), "read_text", stale)
    fails = 2
    assert atomic.read_current(path) == "new"
    fails = 1000
    with pytest.raises(OSError, match="Stale file handle"):
        atomic.read_current(path)


@pytest.mark.parametrize("call", [1, 2], ids=["before it is locked", "before it is replaced"])
def test_a_file_that_another_host_replaced_before_this_one_did_is_opened_anew(tmp_path, monkeypatch, call):
    path, samestat, times = tmp_path / "run.json", os.path.samestat, []
    path.write_text("old")
    found = []

    def stale(*statuses):
        times.append(statuses)
        if len(times) == call:
            (tmp_path / "other").write_text("the other's")
            os.replace(tmp_path / "other", path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return samestat(*statuses)

    def changed():
        found.append(path.read_text())
        return found[-1] + " and mine"

    monkeypatch.setattr(atomic.os.path, "samestat", stale)
    atomic.rewrite(path, changed)
    assert path.read_text() == "the other's and mine"
    assert found == ["old", "the other's"][2 - call :]
