"""The unit protocol: what a unit is, and how one is published, listed and read. No other file spells a unit's name.

A unit is a run of consecutive questions, fixed by the dataset alone. A unit of a stage is one parquet file that appears
whole or not at all; the first rank to publish it wins, and a later copy is dropped. Each file carries a checksum of all
its bytes, its seal: a unit that a disk has damaged is set aside when it is read, and is computed again. It also names
what it was computed from, and the rows that were left out.
"""

import contextlib
import itertools
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from data_engine import stages
from data_engine.plural import plural
from data_engine.store.absent import is_absent, is_there
from data_engine.store.atomic import NOTHING, creating, link, remove_if_abandoned
from data_engine.store.by_threads import by_threads
from data_engine.store.sealed import Sealed, read_facts, read_sealed, write_sealed

UNIT_FILE = re.compile(r"unit-(\d{5,})\.parquet")
# In a list of names with a slash between them, which no name holds: one search is quicker than one a name.
_UNIT_FILES = re.compile(rf"(?<![^/]){UNIT_FILE.pattern}(?![^/])")
# The most runs of numbers that a message names.
MOST_RUNS = 20
# Where units go that are computed again: damaged ones, and those of which something else has changed since.
DAMAGED, REPLACED = "damaged", "replaced"

Row = tuple[int | str, str]
"""idx and reason of a row that was left out"""
AnswerLeftOut = tuple[int | str, int, str]
"""idx, sample_index and reason of an answer that was left out alone"""


@dataclass(frozen=True)
class UnitResult:
    """What a unit of a stage comes to: its table, and the rows that were left out as (idx, reason)."""

    table: pa.Table
    quarantined: list[Row]
    """left out for what they are: for good"""
    missing: list[Row] = field(default_factory=list)
    """could not be read for what was missing around them, such as a file: work that is not done"""
    rows: list[str | None] = field(default_factory=list)
    """of each question, in order, the digest of its content; None where it was left out"""
    turned: int = 0
    """pictures that were turned upright"""
    retries: int = 0
    """how often memory ran out and the work went on in halves: its numbers may then differ in their last bits"""
    drawn: Mapping[str, object] = field(default_factory=dict)
    """of answers that another engine drew: what it tells of them"""
    answers_left_out: list[AnswerLeftOut] = field(default_factory=list)
    """of rows that were not left out"""

    def facts(self) -> dict:
        """What the unit's file says besides its table."""
        told = {"left_out": self.quarantined, "missing": self.missing, "rows": self.rows, "turned": self.turned}
        told |= {"drawn": dict(self.drawn)} if self.drawn else {}
        return told | ({"answers_left_out": self.answers_left_out} if self.answers_left_out else {})


class DamagedUnitError(RuntimeError):
    """A unit that was published and cannot be used any more; it has been set aside, and counts as missing."""


def auto_unit_size(num_questions: int) -> int:
    """Questions a unit: about 1024 units, between 8 and 256 questions each; from the dataset alone."""
    return min(256, max(8, -(-num_questions // 1024)))


def split_units(num_questions: int, unit_size: int) -> list[range]:
    """The rows of each unit, in order; the last may be shorter."""
    return [range(start, min(start + unit_size, num_questions)) for start in range(0, num_questions, unit_size)]


def told_of_empty_shards(num_units: int, num_shards: int, shard_index: int | None = None) -> str | None:
    """A warning where there are more shards than units; None where each has one."""
    if num_shards <= num_units:
        return None
    last = num_shards - 1
    told = f"shard {last} has" if last == num_units else f"shards {num_units} to {last} have"
    this = f" (this is shard {shard_index})" if shard_index is not None and shard_index >= num_units else ""
    there = plural(num_units, "unit")
    return f"{num_shards} shards have {there} to share: {told} nothing to compute{this}; use fewer shards"


def unit_path(work_dir: Path, stage: str, unit: int) -> Path:
    return work_dir / stage / f"unit-{unit:05d}.parquet"


def published(work_dir: Path, stage: str) -> set[int]:
    """Numbers of the units of a stage that are on disk."""
    try:
        names = os.listdir(work_dir / stage)
    except OSError as error:
        if not is_absent(error):
            raise
        names = []
    return set(map(int, _UNIT_FILES.findall("/".join(names))))


def missing(work_dir: Path, stage: str, wanted: Iterable[int]) -> list[int]:
    """The units of `wanted` that are not on disk, in order.

    A shared file system may list a folder as it was a while ago; a file asked for by its name is looked for anew.
    """
    unlisted = set(wanted) - published(work_dir, stage)
    return sorted(unit for unit in unlisted if not is_there(unit_path(work_dir, stage, unit)))


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


def publish(path: Path, table: pa.Table, facts: dict | None = None, under: AbstractContextManager = NOTHING) -> None:
    """Write `table` so that a reader sees all of it or none of it; a unit that is there already is kept.

    It appears under the context `under`, which may also refuse it.
    """
    if is_there(path):
        return
    with creating(path, under) as beside:
        write_sealed(table, beside, facts)


def publish_result(
    work_dir: Path,
    stage: str,
    unit: int,
    result: UnitResult,
    made_from: dict,
    under: AbstractContextManager = NOTHING,
) -> None:
    """Publish what a unit of a stage came to, and what it was computed from: see job/run_file.py; `under`: publish."""
    publish(unit_path(work_dir, stage, unit), result.table, {**result.facts(), "made_from": made_from}, under)


def sweep(work_dir: Path) -> None:
    """Remove what processes that died left of run.json, of reports, and of units which are published by now."""
    leftovers = [*work_dir.glob(".run.json.*"), *work_dir.glob("hashes/.*.json.*"), *work_dir.glob("paths/.*.json.*")]
    for stage in stages.known():
        leftovers += (work_dir / stage).glob(".unit-*.parquet.*")
    leftovers = [path for path in leftovers if path.with_name(path.name[1:].rpartition(".")[0]).exists()]
    for path in [*leftovers, *work_dir.glob("report/**/.index.html.*")]:
        remove_if_abandoned(path, lambda left: left.unlink(missing_ok=True))


def read_unit(work_dir: Path, stage: str, unit: int) -> Sealed:
    """A published unit. Raises DamagedUnitError, once it is set aside, where it is not what was published."""
    path = unit_path(work_dir, stage, unit)
    try:
        with _gone_where_absent(path):
            return read_sealed(path)
    except ValueError as error:
        aside = set_aside(work_dir, stage, unit, DAMAGED, _is_damaged)
        if aside is None:
            # Another rank set it aside, and may have computed it again.
            return read_unit(work_dir, stage, unit)
        raise DamagedUnitError(f"{error}; it was moved to {aside} and will be computed again") from None


def read_unit_facts(work_dir: Path, stage: str, unit: int) -> tuple[dict, str]:
    """Facts and seal of a published unit, from its footer. Raises DamagedUnitError as read_unit does."""
    path = unit_path(work_dir, stage, unit)
    try:
        with _gone_where_absent(path):
            return read_facts(path)
    except ValueError:
        # The footer of a whole unit says all; what is wrong with this one is found and told there, unless another rank
        # has computed it again since.
        whole = read_unit(work_dir, stage, unit)
        return whole.facts, whole.seal


@contextlib.contextmanager
def _gone_where_absent(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_absent(error):
            raise
        raise DamagedUnitError(f"{path} is gone") from None


def set_aside(work_dir: Path, stage: str, unit: int, folder: str, is_meant: Callable[[Path], bool]) -> Path | None:
    """Move a unit out of its place, so that it counts as missing; where it is now.

    None where it is gone, or another one is in its place by now: one that `is_meant` does not know is put back.
    """
    path = unit_path(work_dir, stage, unit)
    aside = work_dir / folder / f"{stage}-{path.stem}.{secrets.token_hex(4)}.parquet"
    aside.parent.mkdir(exist_ok=True)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        # Another rank saw it too.
        return None
    if is_meant(aside):
        return aside
    with contextlib.suppress(FileExistsError):
        link(aside, path)
    aside.unlink()
    return None


def has_seal(seal: str) -> Callable[[Path], bool]:
    """For set_aside: whether a file is the unit with that seal."""

    def is_meant(path: Path) -> bool:
        try:
            return read_facts(path)[1] == seal
        except ValueError:
            return False

    return is_meant


def _is_damaged(path: Path) -> bool:
    try:
        read_sealed(path)
    except ValueError:
        return True
    return False


def sizes(work_dir: Path, stage: str) -> list[int]:
    """Bytes of each published unit of a stage."""
    found = []
    for unit in published(work_dir, stage):
        # Another rank may set it aside.
        with contextlib.suppress(FileNotFoundError):
            found.append(unit_path(work_dir, stage, unit).stat().st_size)
    return found


def left_out(work_dir: Path) -> Iterator[dict]:
    """The rows that stages left out, each once, with its unit: idx, stage, reason, missing, unit. Behind those of a
    unit, its answers that were left out alone, with their sample_index.

    Of a row or an answer that several stages left out, the first of them is told, and of a row that was left out no
    answer. Units that cannot be read say nothing here.
    """

    def facts_of(place: tuple[int, str]) -> dict:
        unit, stage = place
        with contextlib.suppress(OSError, ValueError):
            return read_facts(unit_path(work_dir, stage, unit))[0]
        return {}

    done = {stage: published(work_dir, stage) for stage in stages.known()}
    every = sorted(set().union(*done.values()))
    places = [(unit, stage) for unit in every for stage, numbers in done.items() if unit in numbers]
    read = zip(places, by_threads(facts_of, places), strict=True)
    for unit, of_unit in itertools.groupby(read, key=lambda one: one[0][0]):
        seen, answers = set(), {}
        for (_, stage), facts in of_unit:
            for name in ("left_out", "missing"):
                for idx, reason in facts.get(name, ()):
                    if idx not in seen:
                        seen.add(idx)
                        yield {
                            "idx": idx, "stage": stage, "reason": reason, "missing": name == "missing", "unit": unit
                        }  # fmt: skip
            for idx, index, reason in facts.get("answers_left_out", ()):
                answers.setdefault((idx, index), {"stage": stage, "reason": reason, "missing": False, "unit": unit})
        for (idx, index), told in answers.items():
            if idx not in seen:
                yield {"idx": idx, "sample_index": index, **told}


def compressed(numbers: list[int]) -> str:
    """3, 4, 5, 9 as "3-5, 9"; of more than MOST_RUNS runs, as those of a shard, the first, and how many others."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs[:MOST_RUNS])
    others = sum(last - first + 1 for first, last in runs[MOST_RUNS:])
    return f"{told} and {others:,} others" if others else told
