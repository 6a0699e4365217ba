"""Private folders for work in progress, and moving what is finished into its place.

A process removes the folders that killed ones have left, and leaves those of living ones alone.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_engine.store.atomic import beside_of, locked_new, remove_if_abandoned, sync_file, sync_folder

log = logging.getLogger(__name__)


@contextlib.contextmanager
def scratch_folder(work_dir: Path, purpose: str) -> Iterator[Path]:
    """A new, empty, hidden folder under `work_dir`, gone afterwards; first removes those of dead processes."""
    work_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(work_dir, purpose)
    folder, lock = locked_new(lambda: beside_of(work_dir / purpose), _new_folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_leftovers(work_dir: Path, purpose: str) -> None:
    """Remove the scratch folders that dead processes left."""
    for leftover in sorted(work_dir.glob(f".{purpose}.*")):
        remove_if_abandoned(leftover, _remove)


def _new_folder(folder: Path) -> int:
    folder.mkdir()
    return os.open(folder, os.O_RDONLY)


def _remove(folder: Path) -> None:
    log.info("removing %s, left by a run that was killed", folder)
    shutil.rmtree(folder, ignore_errors=True)


def sync_files(folder: Path) -> None:
    """Make the files below `folder` outlive a power cut."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        sync_file(path)
    sync_folder(folder)


def move_in(file: Path, target: Path) -> None:
    """Make the finished `file` the new `target`, as one step."""
    sync_file(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, target)
    sync_folder(target.parent)


def swap_in(folder: Path, target: Path, old: Path) -> None:
    """Make the finished `folder` the new `target`, whole; what was there moves to `old`, which must not exist.

    Killed in between, `target` is the old one, the new one, or absent: never a mixture.
    """
    sync_files(folder)
    while True:
        try:
            os.rename(folder, target)
            break
        except OSError:
            # A folder that is not empty cannot be renamed over.
            if not target.is_dir():
                raise
        # Another process may swap at the same moment.
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, old)
        old = old.with_name(f"{old.name}-")
    sync_folder(target.parent)
