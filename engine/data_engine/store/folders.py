"""Private folders for work in progress, and moving what is finished into its place.

A process removes the folders that killed ones have left, and leaves those of living ones alone.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from data_engine.store.units import sync_folder

DAY_S = 86_400

log = logging.getLogger(__name__)


@contextlib.contextmanager
def scratch_folder(work_dir: Path, purpose: str) -> Iterator[Path]:
    """A new, empty, hidden folder under `work_dir`, gone afterwards; first removes those of dead processes."""
    work_dir.mkdir(parents=True, exist_ok=True)
    for leftover in sorted(work_dir.glob(f".{purpose}.*")):
        _remove_if_abandoned(leftover)
    folder, lock = _locked_folder(work_dir, purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(work_dir: Path, purpose: str) -> tuple[Path, int]:
    while True:
        # Random, since process ids repeat across hosts.
        folder = work_dir / f".{purpose}.{secrets.token_hex(8)}"
        folder.mkdir()
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            # Another process took it for a leftover before it was locked.
            continue
        # The lock ends with the process, however that ends. Some network file systems have none.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder, descriptor
        os.close(descriptor)


def _remove_if_abandoned(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            abandoned = True
        except BlockingIOError:
            abandoned = False
        except OSError:
            abandoned = time.time() - os.fstat(descriptor).st_mtime > DAY_S
        if abandoned:
            log.info("removing %s, left by a run that was killed", folder)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Make the files below `folder` outlive a power cut."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def move_in(file: Path, target: Path) -> None:
    """Make the finished `file` the new `target`, as one step."""
    with open(file, "rb") as finished:
        os.fsync(finished.fileno())
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
