"""How much room a file system lacks for what is being written to it: an OSError of a full disk in, figures out."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# The disk, or what this user may have of it, is full.
FULL = (errno.ENOSPC, errno.EDQUOT)
# A file system that has so much room, and takes so few files more, is full for want of inodes.
SOME_BYTES, FEW_FILES = 2**20, 64


class NoRoomError(OSError):
    """A disk is full; says how much room what was being written takes, as far as that is known."""

    def __init__(self, error: OSError, folder: Path, needed_bytes: int) -> None:
        super().__init__(error.errno or errno.ENOSPC, error.strerror or str(error), error.filename)
        self.folder, self.needed_bytes = folder, needed_bytes


def is_one_of(error: OSError, numbers: Sequence[int]) -> bool:
    """Whether an error has one of these numbers; of some, Arrow gives the words alone."""
    return error.errno in numbers or any(os.strerror(number) in str(error) for number in numbers)


def is_full(error: OSError) -> bool:
    """Whether there is no room."""
    return is_one_of(error, FULL)


def is_quota(error: OSError) -> bool:
    """Whether this user may have no more, whatever is free."""
    return is_one_of(error, (errno.EDQUOT,))


@contextlib.contextmanager
def counted(
    folder: Path, share: Callable[[], float] = lambda: 1.0, known: Callable[[], int] = lambda: 0
) -> Iterator[None]:
    """Inside, files are written below `folder`; where the disk is full, NoRoomError is raised, which counts them.

    `share` tells how much of the work was done by then, from 0 to 1: the rest takes as much in proportion. `known` is
    the bytes of all of it, where that is not 0. Within another one, what was counted in the inner folder, which may be
    gone by now, is added to the files of the outer one.
    """
    try:
        yield
    except NoRoomError as error:
        raise NoRoomError(error, folder, error.needed_bytes + _bytes_in(folder, error.folder)) from error
    except OSError as error:
        if not is_full(error):
            raise
        done = share()
        # Of work that has just begun, nothing is known of the rest.
        in_proportion = int(_bytes_in(folder) / (done if done > 0 else 1.0))
        raise NoRoomError(error, folder, known() or in_proportion) from error


def told(error: OSError) -> str:
    """What is said of the room that there should be, behind a message; "" where the error does not know it."""
    if not isinstance(error, NoRoomError):
        return ""
    folder, needed = nearest_folder(error.folder.parent), error.needed_bytes
    free = _free_bytes(folder)
    # Where far more is free, a quota is full, of which nothing is known.
    if free is None or free > 2 * needed:
        return ""
    return f"; {'about' if free < needed else 'more than'} {megabytes(needed)} are needed{compared(needed, folder)}"


def told_of_inodes(error: OSError, where: str | Path) -> str:
    """What is said, behind a message, of a disk that has room, and takes no more files; "" where it is not so."""
    folder = nearest_folder(Path(where))
    if not is_one_of(error, (errno.ENOSPC,)) or (_free_bytes(folder) or 0) < SOME_BYTES:
        return ""
    # It does not say, or takes any number of them.
    with contextlib.suppress(OSError):
        found = os.statvfs(folder)
        if found.f_files and found.f_favail < FEW_FILES:
            return (
                f'. The file system of "{folder}" has room, but is short of inodes ({found.f_favail} free, see df -i): '
                "remove files there, or choose another one"
            )
    return ""


def compared(needed_bytes: int, folder: Path) -> str:
    """What is free where `folder` is, and what is missing, behind a sentence that says what is needed."""
    free = _free_bytes(folder)
    if free is None:
        return ""
    missing = f": {megabytes(needed_bytes - free)} are missing" if needed_bytes > free else ""
    return f', {megabytes(free)} are free on the file system of "{folder}"{missing}'


def megabytes(size: int) -> str:
    """Bytes for a person to read, by one unit as far as it tells something, so that a message's figures compare."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def nearest_folder(work_dir: Path) -> Path:
    """The work_dir, or what is there of the path to it; a link to nothing is there, too."""
    return next(folder for folder in (work_dir, *work_dir.absolute().parents) if os.path.lexists(folder))


def _free_bytes(folder: Path) -> int | None:
    """None where the disk, which has just failed, does not say."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def _bytes_in(folder: Path, without: Path | None = None) -> int:
    """The bytes of all files below a folder; those below `without`, a folder in it, are left out."""
    found = 0
    for path in folder.rglob("*"):
        if without is None or not path.is_relative_to(without):
            # Another process may remove it.
            with contextlib.suppress(OSError):
                found += path.lstat().st_size if path.is_file() else 0
    return found
