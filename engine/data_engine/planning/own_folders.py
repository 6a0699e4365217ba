"""What a run keeps in its work_dir, by name. No torch."""

import contextlib
from pathlib import Path

from data_engine import stages
from data_engine.errors import UserError

FOLDERS = (
    *stages.known(), "answers", "claims", "damaged", "dataset", "debug", "exports", "hashes", "logs", "pairs", "paths",
    "replaced", "report",
)  # fmt: skip
FILES = ("run.json",)


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
