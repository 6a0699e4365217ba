"""Files that appear whole or not at all: each is written beside its place, and moved or linked there as one step.

What is being written is locked by its process, so whoever cleans up removes what dead processes left, and nothing else.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from data_engine.errors import UserError
from data_engine.store.absent import is_absent, is_there

DAY_S = 86_400
# Who holds a file for so long was stopped: others go on without it.
HELD_S, POLL_S = 60.0, 0.02
# A file is not replaced so often while it is read.
READ_TRIES = 5
NOTHING = contextlib.nullcontext()
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: what the body writes there replaces `path` as one step, or is removed."""
    with _temporary(path) as beside:
        yield beside
        sync_file(beside)
        os.replace(beside, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def creating(path: Path, under: AbstractContextManager = NOTHING) -> Iterator[Path]:
    """A temporary path beside `path`: what the body writes there becomes `path`, unless something is there by then.

    A link, unlike a rename, cannot replace: of two that are in the middle of it, the first wins. `under` is entered for
    the link alone; where entering it raises, there is none.
    """
    with _temporary(path) as beside:
        try:
            yield beside
            sync_file(beside)
            with under, contextlib.suppress(FileExistsError):
                link(beside, path)
        except FileNotFoundError:
            # A server forgets the lock of a machine that was away for a while, and another process then sweeps what is
            # written here, once `path` is there.
            if not is_there(path):
                raise
    sync_folder(path.parent)


def link(source: Path, target: Path) -> None:
    """os.link; UserError where the file system has no hard links, as FAT and some that FUSE or a network bring."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise UserError(
            f'the file system of "{target.parent}" has no hard links ({error.strerror}), by which results are '
            "published once: choose a work_dir on another one, and copy the dataset from there"
        ) from None


def rewrite(path: Path, changed: Callable[[], str | None]) -> None:
    """Replace a text file by what `changed` makes of what is there; None: leave it as it is.

    Of processes that do so at the same time, each sees what the one before it wrote; `changed` is called again where
    another one came in between.
    """
    while True:
        with alone_with(path) as is_same:
            text = changed()
            if text is None:
                return
            with _temporary(path) as beside:
                beside.write_text(text)
                sync_file(beside)
                # This process may have been stopped for so long that another one went on without it.
                if is_same():
                    os.replace(beside, path)
                    sync_folder(path.parent)
                    return


def read_current(path: Path) -> str:
    """The text of a file that others may replace.

    NFS does not give the rest of one that another host has replaced: the new one is read.
    """
    for left in reversed(range(READ_TRIES)):
        try:
            return path.read_text()
        except OSError as error:
            if error.errno != errno.ESTALE or not left:
                raise
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """An empty, locked file beside `path` for what will become it; removed at the end, if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, descriptor = locked_new(
        lambda: beside_of(path), lambda new: os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    )
    try:
        yield beside
    finally:
        # Closed first: on NFS, a file that is removed while it is open lives on under another name.
        os.close(descriptor)
        beside.unlink(missing_ok=True)


def beside_of(path: Path) -> Path:
    """A new hidden name beside `path`. Random, since process ids repeat across hosts."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def locked_new(name: Callable[[], Path], opened: Callable[[Path], int]) -> tuple[Path, int]:
    """A new file or folder that only this process has, and the descriptor that holds its lock.

    `opened` creates it under its name and returns a descriptor. The lock ends with the process, however that ends.
    """
    while True:
        path = name()
        try:
            descriptor = opened(path)
        except FileNotFoundError:
            # Another process took a folder for a leftover before it was opened.
            if not path.parent.is_dir():
                raise
            continue
        # Some network file systems have no locks: there, age tells leftovers.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Or before it was locked.
        if is_there(path):
            return path, descriptor
        os.close(descriptor)


def remove_if_abandoned(path: Path, remove: Callable[[Path], None]) -> None:
    """Call `remove` where the process that created a file or folder by locked_new has died."""
    descriptor = _opened(path)
    if descriptor is None:
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
            remove(path)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int | None:
    """A descriptor of a file or folder; None where it is gone, or private.

    Opened for writing where that is allowed, since NFS locks nothing else.
    """
    for flags in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            return None
        except (PermissionError, IsADirectoryError):
            continue
    return None


@contextlib.contextmanager
def alone_with(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[Callable[[], bool]]:
    """Inside, this process may read a file and replace it: all others that ask for the same wait until it is done.

    With LOCK_SH it may read the file, and rely on it: who may replace it waits. Nobody waits for ever: after HELD_S the
    body runs in any case, as it does where the file system has no locks. Yields whether the file is still the same one.
    """
    descriptor = _locked(path, kind)
    try:
        yield lambda: descriptor is None or _is_same(descriptor, path)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path, kind: int) -> int | None:
    end = time.monotonic() + HELD_S
    while True:
        descriptor = _opened(path)
        if descriptor is None or _locks(descriptor, path, kind) or time.monotonic() > end:
            return descriptor
        os.close(descriptor)
        time.sleep(POLL_S)


def _locks(descriptor: int, path: Path, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return not is_absent(error)
    # Another process may have replaced the file before it was locked.
    return _is_same(descriptor, path)


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that is there now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError as error:
        if not is_absent(error):
            raise
        return False


def sync_file(path: Path) -> None:
    """Make the content of a file outlive a power cut."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
