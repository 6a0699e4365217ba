"""What a full, read-only or failing disk means to a run: it stops, keeps what is published, and says what is needed."""

import errno
import json
import os
from pathlib import Path

from data_engine import stages
from data_engine.errors import UserError
from data_engine.store import room, units
from data_engine.store.room import nearest_folder

# No fault of the program, and gone once the disk is mended, or the limit on the size of a file (ulimit -f).
TROUBLES = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG,
    # Of a network: NFS has lost a file, Lustre has cut this host off, what serves a FUSE mount has ended.
    errno.ESTALE, errno.ESHUTDOWN, errno.ENOTCONN,
)  # fmt: skip


def is_trouble(error: OSError) -> bool:
    """Whether the disk is to blame, not the path or its permissions."""
    return room.is_one_of(error, TROUBLES)


def is_forbidden(error: OSError) -> bool:
    """Whether this user may not read or write a file, as where another one has begun the run."""
    return error.errno == errno.EACCES and error.filename is not None


def forbidden(error: OSError, work_dir: Path) -> UserError:
    """What is said of it; a cache of a library lies elsewhere."""
    where = Path(os.fsdecode(error.filename))
    is_inside = where.absolute().is_relative_to(work_dir.absolute())
    instead = "choose another work_dir" if is_inside else "have the library that it belongs to keep its files elsewhere"
    return UserError(
        f'"{where}" cannot be read or written: {error.strerror}. Where it is of another user, have it given to this '
        f"one, or {instead}"
    )


def describe(error: OSError, work_dir: Path, run_stages: stages.RunStages) -> str:
    """What happened, where, and how to mend it, for a person to read; the stages are those of this start."""
    where = error.filename or work_dir
    reason = error.strerror or str(error)
    told = f'cannot write "{where}": {reason}. Every published unit is kept: make room, or mend the disk, and run the '
    told += "same command again"
    if no_inodes := room.told_of_inodes(error, where):
        return told + no_inodes
    needed = needed_bytes(work_dir, run_stages)
    if not needed or not room.is_full(error):
        return told + room.told(error)
    # Of a stage that has none yet, nothing is known.
    about = "about" if all(units.sizes(work_dir, stage) for stage in run_stages.by_name) else "more than"
    told += f". The units that are left need {about} {room.megabytes(needed)} more"
    return told if room.is_quota(error) else told + room.compared(needed, work_dir)


def not_writable(work_dir: Path, error: OSError) -> UserError:
    """What is said of a work_dir that this user may not write."""
    where = nearest_folder(work_dir)
    return UserError(f'work_dir "{work_dir}": cannot write to "{where}": {os.strerror(error.errno)}')


def needed_bytes(work_dir: Path, run_stages: stages.RunStages) -> int:
    """What the units that are still missing will take, by the mean of those that are there; 0 where none is known."""
    try:
        run = json.loads((work_dir / "run.json").read_text())
        num_units, total = run["units"]["num_units"], 0
    except (OSError, ValueError):
        return 0
    for stage in run_stages.by_name:
        sizes = units.sizes(work_dir, stage)
        if sizes:
            total += (num_units - len(sizes)) * sum(sizes) // len(sizes)
    return total
