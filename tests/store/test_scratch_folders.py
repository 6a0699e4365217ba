"""Folders in which files are made before they have their names: whose they are, and when they are removed."""

import contextlib
import fcntl
import os

import pytest

from data_engine.errors import TakenOverError
from data_engine.store import folders
from data_engine.store.folders import move_in, move_in_once, scratch_folder, sole_scratch_folder, swap_in


def test_what_dead_runs_left_is_removed_and_what_living_ones_use_is_not(tmp_path):
    dead, alive = tmp_path / ".pairing.dead", tmp_path / ".pairing.alive"
    for folder in (dead, alive):
        (folder / "dataset").mkdir(parents=True)
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with scratch_folder(tmp_path, "pairing") as own:
            assert sorted(tmp_path.iterdir()) == sorted([alive, own])
    finally:
        os.close(lock)
    assert list(tmp_path.iterdir()) == [alive]


def test_who_takes_over_removes_what_living_processes_have_and_these_publish_nothing_more(
    tmp_path, monkeypatch, caplog
):
    target, others = tmp_path / "dataset", []
    target.mkdir()
    (target / "older").touch()
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(sole_scratch_folder(tmp_path, "pairing", lambda: True))
        (one / "made").mkdir()

        def take_over(_):
            others.append(stack.enter_context(sole_scratch_folder(tmp_path, "pairing", lambda: True)))

        # The last moment before the renames.
        monkeypatch.setattr(folders, "sync_files", take_over)
        with pytest.raises(FileNotFoundError):
            swap_in(one / "made", target, one / "old")
        assert list(tmp_path.glob(".*")) == others
    assert caplog.messages == [f"removing {one} of a start that was not heard of for a while: this one takes over"]
    assert [path.name for path in tmp_path.rglob("*")] == ["dataset", "older"]


def test_who_was_stopped_before_it_had_a_scratch_folder_leaves_that_of_who_took_its_claim_over(tmp_path):
    with sole_scratch_folder(tmp_path, "pairing", lambda: True) as other:
        refused = pytest.raises(TakenOverError, match="another start of")
        with refused, sole_scratch_folder(tmp_path, "pairing", lambda: False):
            pytest.fail("it has no claim")
        assert list(tmp_path.iterdir()) == [other]


def test_scratch_is_gone_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="stop"), scratch_folder(tmp_path, "pairing"):
        raise ValueError("stop")
    assert os.listdir(tmp_path) == []


def test_what_is_moved_is_on_the_disk_before_it_has_its_name_and_the_name_before_it_counts(tmp_path, steps_to_disk):
    """Pairs, the copy of given answers and datasets: after a power cut each is whole, or not there."""
    (tmp_path / "made-pairs").touch()
    move_in(tmp_path / "made-pairs", tmp_path / "place/pairs")
    assert steps_to_disk == ["sync made-pairs", "pairs", "sync place"]
    for move, name in ((move_in_once, "answers"), (_swap_in, "dataset")):
        steps_to_disk.clear()
        (tmp_path / f"made-{name}/below").mkdir(parents=True)
        (tmp_path / f"made-{name}/below/rows").touch()
        move(tmp_path / f"made-{name}", tmp_path / "place" / name)
        assert steps_to_disk == ["sync below", "sync rows", f"sync made-{name}", name, "sync place"]


def _swap_in(folder, target):
    swap_in(folder, target, target.with_name("old"))
