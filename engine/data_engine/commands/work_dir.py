"""What the commands about a finished or running work_dir share: arguments, its run.json, its questions. No torch."""

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data_engine.config import RunConfig
from data_engine.errors import IncompleteError, UserError, nearest
from data_engine.flag_files import from_home, look_up, nearest_path
from data_engine.flags import GONE
from data_engine.of_pairing import OWN, of_pairing, pairs_file

if TYPE_CHECKING:
    from data_engine.pipeline.export import FinishedRun


def given_path(name: str, text: str) -> Path:
    """A path of a command line. Raises UserError where it is empty, which Path would take for the current folder."""
    if not text.strip():
        raise UserError(f"{name} is empty; is a shell variable unset?")
    return Path(from_home(text))


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add --dataset_path and --image_root."""
    for name, told in (
        ("dataset_path", "where the dataset is, if it has moved since the run"),
        ("image_root", "where its pictures are, if they have moved"),
    ):
        parser.add_argument(f"--{name}", type=from_home, metavar="PATH", help=told)


def has_not_begun(work_dir: Path) -> bool:
    """Whether jobs of a run were submitted, and no rank has got as far as run.json; weights are hashed before it."""
    logs = work_dir / "logs"
    if not logs.is_dir() or (work_dir / "run.json").exists():
        return False
    with contextlib.suppress(OSError):
        # Else they are those of something else.
        return all(entry.name.startswith(("slurm-", "rank-")) for entry in logs.iterdir())
    return False


def _why_not_begun(work_dir: Path) -> str:
    began, queued = (any((work_dir / "logs").glob(names)) for names in ("rank-*", "slurm-*"))
    if began and not queued:
        return "its start was refused, or is still reading its models; what it printed says which"
    return f'its jobs wait in a queue, or have failed before; their output is "{work_dir}/logs/slurm-*.out"'


def read_run(work_dir: Path) -> dict:
    """run.json of a work_dir. Raises UserError where the folder is none, IncompleteError where no rank has begun."""
    look_up("WORK_DIR", work_dir)
    if not work_dir.is_dir():
        is_file = f'"{work_dir}" is a file; name the work_dir of a run, a folder'
        raise UserError(is_file if work_dir.exists() else f'no folder "{work_dir}"{nearest_path(work_dir)}')
    try:
        found = dict(json.loads((work_dir / "run.json").read_text(encoding="utf-8")))
        _require_shape(found)
    except FileNotFoundError:
        if has_not_begun(work_dir):
            raise IncompleteError(f'no rank has begun yet in "{work_dir}": {_why_not_begun(work_dir)}') from None
        if rounds := sorted(work_dir.glob("round-*/run"), key=lambda path: len(str(path))):
            raise UserError(
                f'"{work_dir}" is the folder of a loop: name one of its rounds, as "{rounds[-1]}"'
            ) from None
        raise UserError(f'"{work_dir}" is not the work_dir of a run: it has no run.json') from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f'"{work_dir}/run.json" is not one of a run: {type(error).__name__}: {error}') from None
    return found


def _require_shape(run_file: Mapping) -> None:
    """Raise TypeError where an entry, if it is there, is not of the kind that every version has written."""
    entries = {name: run_file.get(name, {}) for name in ("config", "models", "bound", "places")}
    if isinstance(entries["models"], dict):
        entries |= {f"models.{role}": told for role, told in entries["models"].items()}
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise TypeError(f"{name} is no object")
    if not isinstance(entries["config"].get("rewards", ""), str | None):
        raise TypeError("config.rewards is no text")


def read_paired(work_dir: Path, needed: Iterable[tuple[str, str]] = ()) -> dict:
    """run.json of a run whose pairs are written; `needed` are entries of it, and names in them, that will be read.

    Raises UserError without pairs.
    """
    run_file = read_run(work_dir)
    if not pairs_file(work_dir).is_file():
        raise UserError(f'"{work_dir}" has no pairs/{OWN}.parquet yet: let the run finish stage 2 first')
    for entry, name in needed:
        if name not in run_file.get(entry, {}):
            raise _of_another_version(work_dir, f"{entry} has no {name}")
    return run_file


def require_pairing(work_dir: Path, name: str) -> None:
    """Raise UserError for the name of no pairing of a run whose pairs are written."""
    known = sorted(path.stem for path in pairs_file(work_dir).parent.glob("*.parquet"))
    if name not in known:
        raise UserError(f'"{work_dir}" has no pairing "{name}"{nearest(name, known)}; it has: {", ".join(known)}')


def open_finished(
    work_dir: Path, moved: Mapping[str, str | None], needed: Iterable[tuple[str, str]] = (), name: str | None = None
) -> "FinishedRun":
    """A run whose pairs are written, with its questions; `moved` says where the dataset is, if it has moved.

    `needed` is as read_paired takes it, and `name` is that of a pairing, None for the run's own. Raises UserError
    without pairs, and where the dataset is not the one of the run.
    """
    run_file = read_paired(work_dir, (("bound", "dataset"), *needed))
    name = OWN if name is None else name
    require_pairing(work_dir, name)
    # Imported late: pyarrow and numpy would delay the messages above.
    from data_engine.pipeline.export import FinishedRun, read_metadata
    from data_engine.questions.dataset import open_questions
    from data_engine.store.claims import Claims
    from data_engine.store.file_hashes import FileHashes, hash_files

    run_file = of_pairing(run_file, read_metadata(work_dir, name))
    config = config_of(work_dir, run_file, {name: value for name, value in moved.items() if value is not None})
    try:
        questions = open_questions(config)
    except UserError as error:
        if moved.get("dataset_path") is not None:
            raise
        raise UserError(f"{error}; where the dataset has moved, give --dataset_path and --image_root") from None
    # Where hashes cannot be remembered, as in an archive, every file is read.
    hashes = FileHashes(work_dir, Claims(work_dir, 0)) if os.access(work_dir, os.W_OK) else hash_files
    if questions.fingerprint(hashes) != run_file["bound"]["dataset"]:
        if moved.get("dataset_path") is None:
            raise UserError(
                f'"{config.dataset_path}" is not the dataset that "{work_dir}" was made from; it has changed'
            )
        was = run_file.get("places", {}).get("dataset_path") or run_file["config"].get("dataset_path")
        raise UserError(
            f'"{config.dataset_path}" is not the dataset that "{work_dir}" was made from; that was "{was}", or the '
            "same content elsewhere"
        )
    return FinishedRun(work_dir, run_file, questions, config, name)


@contextlib.contextmanager
def told_of_disk(folder: Path) -> Iterator[None]:
    """Raise UserError for a disk that is full, and the like, and IncompleteError for a unit that is no longer whole."""
    # Imported late: pyarrow would delay the messages of commands that read no unit.
    from data_engine.store import room
    from data_engine.store.units import DamagedUnitError

    try:
        yield
    except DamagedUnitError as damage:
        raise IncompleteError(f"{damage}; the command of the run, given again, computes it again") from None
    except OSError as error:
        reason = error.strerror or str(error)
        # Of a file that is moved, its place matters.
        where = error.filename2 or error.filename or folder
        lacking = room.told_of_inodes(error, where) or room.told(error)
        raise UserError(f'"{where}" cannot be read or written: {reason}{lacking}') from None


@contextlib.contextmanager
def of_one_pairing(work_dir: Path, *pairs: Path) -> Iterator[None]:
    """Raise IncompleteError where one of the files of pairs, which the body reads, is another one by its end.

    They are read several times: what is made of two of them is of neither, or fails.
    """
    before, failure = [_identity(path) for path in pairs], None
    try:
        yield
    except Exception as error:
        failure = error
    if [_identity(path) for path in pairs] != before:
        raise IncompleteError(
            f'the pairs of "{work_dir}" were written anew meanwhile: give the command again'
        ) from failure
    if failure is not None:
        raise failure


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def config_of(work_dir: Path, run_file: Mapping, moved: Mapping[str, str]) -> RunConfig:
    """The configuration of a run, with its dataset where it is now."""
    places = run_file.get("places", {}) | moved
    try:
        # No prompt is written, and the files of templates may be gone.
        config = {name: value for name, value in run_file.get("config", {}).items() if name not in GONE}
        found = RunConfig(**config | {"chat_template": None, "yesno_template": None} | places)
    except TypeError as error:
        raise _of_another_version(work_dir, str(error)) from None
    # A copy on disk, of a dataset of the hub, has no revisions, and a single file no splits: its content is compared.
    # Not by Path, which raises where this user may not look.
    copy, split, revision = found.dataset_path, found.dataset_split, found.dataset_revision
    return dataclasses.replace(
        found,
        dataset_split=None if os.path.isfile(copy) else split,
        dataset_revision=None if os.path.exists(copy) else revision,
    )


def _of_another_version(work_dir: Path, why: str) -> UserError:
    return UserError(
        f'"{work_dir}/run.json" is not one of this version of the program ({why}): use the version that made the run, '
        "or give its command again"
    )
