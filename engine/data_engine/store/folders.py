"""Private folders for work in progress, and moving what is finished into its place.

A process removes the folders that killed ones have left, and leaves those of living ones alone.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from data_engine.errors import TakenOverError
from data_engine.store.absent import all_below, is_absent
from data_engine.store.atomic import beside_of, locked_new, remove_if_abandoned, sync_file, sync_folder
from data_engine.store.room import counted

log = logging.getLogger(__name__)


@contextlib.contextmanager
def scratch_folder(work_dir: Path, purpose: str) -> Iterator[Path]:
    """A new, empty, hidden folder under `work_dir`, gone afterwards; first removes those of dead processes.

    Raises TakenOverError where the body fails because another process has removed the folder: see sole_scratch_folder.
    Raises NoRoomError where the disk is full.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(work_dir, purpose)
    folder, lock = locked_new(lambda: beside_of(work_dir / purpose), _new_folder)
    try:
        with counted(folder):
            yield folder
    except Exception as error:
        if not _is_gone(folder):
            raise
        raise _taken_over(work_dir) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def sole_scratch_folder(work_dir: Path, purpose: str, has_claim: Callable[[], bool]) -> Iterator[Path]:
    """A scratch folder for whoever has the claim on what is made in it: those of living processes are removed, too.

    These were stopped for so long that their claim lapsed. A process publishes by renames out of its scratch folder,
    so that none of theirs can succeed once they go on, wherever they were stopped: what is made in the folder must not
    create it again, by mkdir with parents. Raises TakenOverError where this process is such a one.
    """
    with scratch_folder(work_dir, purpose) as folder:
        # Asked once the folder is there: whoever takes the claim over from now on finds it.
        if not has_claim():
            raise _taken_over(work_dir)
        for other in sorted(work_dir.glob(f".{purpose}.*")):
            if other != folder:
                log.warning("removing %s of a start that was not heard of for a while: this one takes over", other)
                _take_away(other, work_dir / purpose)
        yield folder


def _taken_over(work_dir: Path) -> TakenOverError:
    return TakenOverError(
        f'another start of "{work_dir}" has taken over what this one was making, which had been stopped, or cut off '
        "from the file system, for more than a minute; nothing more of it is published. Give the command again to make "
        "it anew"
    )


@contextlib.contextmanager
def part_of(scratch: Path, name: str) -> Iterator[Path]:
    """A new folder in a scratch folder, gone afterwards."""
    folder = scratch / name
    folder.mkdir()
    try:
        with counted(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_gone(folder: Path) -> bool:
    try:
        os.stat(folder)
    except OSError as error:
        # A disk that fails says nothing of it.
        return is_absent(error)
    return False


def remove_leftovers(work_dir: Path, purpose: str) -> None:
    """Remove the scratch folders that dead processes left."""
    for leftover in sorted(work_dir.glob(f".{purpose}.*")):
        remove_if_abandoned(leftover, _remove)


def _new_folder(folder: Path) -> int:
    folder.mkdir()
    return os.open(folder, os.O_RDONLY)


def _take_away(folder: Path, purpose: Path) -> None:
    """Remove a folder in which another process may work: under its name that finds the whole of it, or nothing."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder.rename(beside_of(purpose)), ignore_errors=True)


def _remove(folder: Path) -> None:
    log.info("removing %s, left by a run that was killed", folder)
    shutil.rmtree(folder, ignore_errors=True)


def sync_files(folder: Path) -> None:
    """Make the files below `folder` outlive a power cut."""
    for path in all_below(folder):
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


def move_in_once(folder: Path, target: Path) -> None:
    """Make the finished `folder` the new `target`, unless there is one: others may be reading that."""
    sync_files(folder)
    try:
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():
            raise
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
            # A folder that is not empty cannot be renamed over. Nor can one be renamed that another process took away.
            if not (target.is_dir() and folder.is_dir()):
                raise
        # Another process may swap at the same moment.
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, old)
        old = old.with_name(f"{old.name}-")
    sync_folder(target.parent)
