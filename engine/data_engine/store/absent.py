"""What is there on a file system, and which errors of a shared one mean that a file is not there (any more).

Where the file system fails, Path.glob finds nothing from Python 3.13 on, and Path.exists and is_file say no from 3.14
on. What is here raises the error with every Python, so that a disk that fails loses no work and chooses no other file.
"""

import errno
import os
import stat
from fnmatch import fnmatchcase
from pathlib import Path

# ESTALE: NFS, where another host has removed or replaced a file that this one still knew by its old handle.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


def is_absent(error: OSError) -> bool:
    """Whether the file that a call asked for is not there, or no longer the one that was asked for."""
    return error.errno in _ABSENT


def is_there(path: Path) -> bool:
    """Whether a path exists, as Path.exists. Raises OSError where the file system cannot tell."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether a path is a file, as Path.is_file. Raises OSError where the file system cannot tell."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except OSError as error:
        # Links in a circle lead to nothing.
        if not is_absent(error) and error.errno != errno.ELOOP:
            raise
    # A name that no file can have.
    except ValueError:
        pass
    return None


def matching(folder: Path, pattern: str) -> list[Path]:
    """The paths that match, sorted, as Path.glob finds them; only the last part of the pattern may have wildcards.

    Raises OSError where the file system cannot tell.
    """
    below, _, last = pattern.rpartition("/")
    try:
        names = os.listdir(folder / below)
    except OSError as error:
        if not is_absent(error):
            raise
        return []
    return sorted(folder / below / name for name in names if fnmatchcase(name, last))


def all_below(folder: Path) -> list[Path]:
    """Files and folders below a folder, as Path.rglob, sorted. Raises OSError where one of them cannot be listed."""

    def fail(error: OSError) -> None:
        raise error

    return sorted(Path(at, name) for at, *names in os.walk(folder, onerror=fail) for name in (*names[0], *names[1]))
