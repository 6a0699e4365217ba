"""What a run keeps in its work_dir, by name, and whether it can be kept there. No torch."""

import contextlib
import os
import tempfile
from pathlib import Path

from data_engine import stages
from data_engine.errors import UserError
from data_engine.flag_files import look_up, require_filled_in
from data_engine.store.disk import not_writable
from data_engine.store.room import nearest_folder

FOLDERS = (
    *stages.known(), "answers", "claims", "damaged", "dataset", "debug", "exports", "hashes", "logs", "pairs", "paths",
    "replaced", "report",
)  # fmt: skip
FILES = ("run.json",)
# Folders, beside those of its stages, that any run writes to.
WRITTEN = ("claims", "hashes", "logs", "pairs", "dataset", "report")


def check_writable(work_dir: Path) -> None:
    """Raise UserError where `work_dir` is none, or neither it nor its nearest existing parent can be written."""
    check_place(work_dir)
    existing = nearest_folder(work_dir)
    try:
        # A real file, since permission bits do not show a full quota or a read-only mount.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise not_writable(work_dir, error) from None


def check_place(work_dir: Path) -> None:
    """Raise UserError where there can be no such folder of a run; whether it can be written is not looked at."""
    look_up("work_dir", work_dir)
    require_filled_in("work_dir", work_dir)
    existing = nearest_folder(work_dir)
    if not existing.exists():
        raise UserError(f'work_dir "{work_dir}": "{existing}" is a link to nothing; make the folder that it names')
    if not existing.is_dir():
        raise UserError(f'work_dir "{work_dir}": "{existing}" is a file; name a folder, or a place for one')
    require_own(work_dir)


def require_open(work_dir: Path) -> None:
    """Raise UserError where folders that any run writes to are there, and this user may not write to them."""
    folders = [work_dir / name for name in (*WRITTEN, *stages.known())]
    closed = [str(folder) for folder in folders if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)]
    if closed:
        raise UserError(
            f'work_dir "{work_dir}": cannot write to {", ".join(closed)}. Where another user has begun the run, have '
            "these given to this one, or choose another work_dir"
        )


def require_own(work_dir: Path) -> None:
    """Raise UserError where something of another kind, which the run did not make, stands under one of its names.

    So it is where work_dir is a folder of something else. Each would end the run in the middle.
    """
    # Not by Path.exists, to which a link to nothing is as nothing.
    names: dict[str, Path] = {}
    # Whether it can be read and written, others look.
    with contextlib.suppress(OSError):
        names = {path.name: path for path in work_dir.iterdir()}
    for name in FOLDERS:
        if name in names and not names[name].is_dir():
            raise _taken(work_dir, names[name], "no folder")
    for name in FILES:
        if name in names and not names[name].is_file():
            raise _taken(work_dir, names[name], "no file")


def _taken(work_dir: Path, path: Path, what: str) -> UserError:
    told = f'"{path}" is {what}, and the run keeps one of that name: move it away, or choose another work_dir'
    return UserError(f'work_dir "{work_dir}": {told}')
