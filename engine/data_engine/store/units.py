"""The unit protocol: what a unit is, and how one is published, listed and read. No other file spells a unit's name.

A unit is a run of consecutive questions, fixed by the dataset alone. A unit of a stage is one parquet file that appears
whole or not at all; the first rank to publish it wins, and a later copy is dropped. Each file carries a checksum of all
its bytes: a unit that a disk has damaged is set aside when it is read, and is computed again.
"""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine import schemas, stages

UNIT_FILE = re.compile(r"unit-(\d{5,})\.parquet")
QUARANTINE_FILE = re.compile(r"unit-(\d{5,})(?:\.\w+)?\.parquet")
# Key of a file's metadata that holds the sha256 of the file, taken with BLANK in its place.
SEAL, BLANK = "data_engine_sha256", b"0" * 64


@dataclass(frozen=True)
class UnitResult:
    """What a unit of a stage comes to: its table, and the rows that were left out as (idx, reason)."""

    table: pa.Table
    quarantined: list[tuple[int | str, str]]
    retries: int = 0
    """how often memory ran out and the work went on in halves: its numbers may then differ in their last bits"""


class DamagedUnitError(RuntimeError):
    """A unit that was published and is no longer what it was; it has been set aside, and counts as missing."""


def auto_unit_size(num_questions: int) -> int:
    """Questions a unit: about 1024 units, between 8 and 256 questions each; from the dataset alone."""
    return min(256, max(8, -(-num_questions // 1024)))


def split_units(num_questions: int, unit_size: int) -> list[range]:
    """The rows of each unit, in order; the last may be shorter."""
    return [range(start, min(start + unit_size, num_questions)) for start in range(0, num_questions, unit_size)]


def unit_path(work_dir: Path, stage: str, unit: int) -> Path:
    return work_dir / stage / f"unit-{unit:05d}.parquet"


def published(work_dir: Path, stage: str) -> set[int]:
    """Numbers of the units of a stage that are on disk."""
    names = os.listdir(work_dir / stage) if (work_dir / stage).is_dir() else []
    return {int(match[1]) for match in map(UNIT_FILE.fullmatch, names) if match}


def missing(work_dir: Path, stage: str, wanted: Iterable[int]) -> list[int]:
    """Those of `wanted` that are not on disk, in order.

    A shared file system may list a folder as it was a while ago; a file asked for by its name is looked for anew.
    """
    unlisted = set(wanted) - published(work_dir, stage)
    return sorted(unit for unit in unlisted if not unit_path(work_dir, stage, unit).exists())


def workable(
    names: Sequence[str], mine: Iterable[int], done: Mapping[str, Collection[int]]
) -> Iterator[tuple[str, int]]:
    """The (stage, unit) that a free rank may take, in the order of its choice: those of earlier stages first.

    `done` are the published units of each stage, and of those that it needs. Whoever is free takes the next one, so
    that a slow rank takes fewer.
    """
    known = stages.known()
    for stage in names:
        for unit in mine:
            if unit not in done[stage] and all(unit in done[needed] for needed in known[stage].needs):
                yield stage, unit


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: what the body writes there replaces `path` as one step, or is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, since process ids repeat across hosts.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def publish(path: Path, table: pa.Table) -> None:
    """Write `table` so that a reader sees all of it or none of it; a unit that is there already is kept."""
    if path.exists():
        return
    try:
        with replacing(path) as temporary:
            write_sealed(table, temporary)
    except FileNotFoundError:
        # Another rank published the unit and swept what looked left over.
        if not path.exists():
            raise


def sweep(work_dir: Path) -> None:
    """Remove what processes that died left of run.json, and of units which are published by now."""
    leftovers = [*work_dir.glob(".run.json.*")]
    for stage in (*stages.known(), "quarantine"):
        leftovers += (work_dir / stage).glob(".unit-*.parquet.*")
    for path in leftovers:
        if path.with_name(path.name[1:].rpartition(".")[0]).exists():
            path.unlink(missing_ok=True)


def write_sealed(table: pa.Table, path: Path) -> None:
    """Write a parquet file that carries its own checksum."""
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({SEAL: BLANK.decode()})
    content = path.read_bytes()
    with open(path, "r+b") as file:
        file.seek(content.rindex(BLANK))
        file.write(hashlib.sha256(content).hexdigest().encode())


def read_sealed(path: Path) -> pa.Table:
    """The table of a file by write_sealed. Raises ValueError where a byte of it has changed since."""
    content = path.read_bytes()
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        seal = file.metadata.metadata[SEAL.encode()]
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no whole unit: {error}") from None
    if hashlib.sha256(content.replace(seal, BLANK)).hexdigest().encode() != seal:
        raise ValueError(f"{path} has changed since it was published: its checksum does not fit")
    return file.read().replace_schema_metadata(None)


def read_unit(work_dir: Path, stage: str, unit: int) -> pa.Table:
    """A published unit. Raises DamagedUnitError, once it is set aside, where it is not what was published."""
    path = unit_path(work_dir, stage, unit)
    try:
        return read_sealed(path)
    except FileNotFoundError:
        raise DamagedUnitError(f"{path} is gone") from None
    except ValueError as error:
        aside = work_dir / "damaged" / f"{stage}-{path.stem}.{secrets.token_hex(4)}.parquet"
        aside.parent.mkdir(exist_ok=True)
        # Gone already where another rank saw it too.
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, aside)
        raise DamagedUnitError(f"{error}; it was moved to {aside} and will be computed again") from None


def publish_result(work_dir: Path, stage: str, unit: int, result: UnitResult) -> None:
    """Publish what a unit of a stage came to: the rows left out first, so that a published unit never hides one."""
    if result.quarantined:
        rows = [{"idx": idx, "stage": stage, "reason": reason} for idx, reason in result.quarantined]
        schema = schemas.quarantine(result.table.schema.field("idx").type)
        publish(quarantine_path(work_dir, stage, unit), pa.Table.from_pylist(rows, schema))
    publish(unit_path(work_dir, stage, unit), result.table)


def sizes(work_dir: Path, stage: str) -> list[int]:
    """Bytes of each published unit of a stage."""
    return [path.stat().st_size for path in (work_dir / stage).glob("unit-*.parquet")]


def left_out(work_dir: Path) -> Iterator[dict]:
    """The rows that stages left out, each once, with its unit: idx, stage, reason, unit.

    Of a row that several stages left out, the first of them is told.
    """
    order, rows = list(stages.known()), []
    for path in sorted((work_dir / "quarantine").glob("unit-*.parquet")):
        if match := QUARANTINE_FILE.fullmatch(path.name):
            rows += [row | {"unit": int(match[1])} for row in pq.read_table(path, partitioning=None).to_pylist()]
    seen = set()
    for row in sorted(rows, key=lambda row: (row["unit"], order.index(row["stage"]))):
        if (row["unit"], row["idx"]) not in seen:
            seen.add((row["unit"], row["idx"]))
            yield row


def num_left_out(work_dir: Path, unit: int) -> int:
    """How many questions of a unit one of the stages left out."""
    paths = [quarantine_path(work_dir, stage, unit) for stage in stages.known()]
    found = [pq.read_table(path, columns=["idx"], partitioning=None) for path in paths if path.exists()]
    return pc.count_distinct(pa.concat_tables(found)["idx"]).as_py() if found else 0


def quarantine_path(work_dir: Path, stage: str, unit: int) -> Path:
    """Where the rows that a stage left out are recorded; a file has one writer, so each stage has its own."""
    name = f"unit-{unit:05d}" if stages.known()[stage].step == stages.SAMPLE else f"unit-{unit:05d}.{stage}"
    return work_dir / "quarantine" / f"{name}.parquet"


def compressed(numbers: list[int]) -> str:
    """3, 4, 5, 9 as "3-5, 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
