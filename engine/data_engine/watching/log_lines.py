"""The logs of all ranks, read on from where the last look ended: times of units, warnings, starts and ends."""

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from data_engine.store.logs import LOG_FILE, amount, parsed
from data_engine.store.process_identity import ProcessIdentity
from data_engine.watching.progress import CLOCKS_DIFFER_S, RECENT_UNITS, UnitTime, Warned, lately_s

NUM_WARNINGS = 50
# How a line begins to name its stage.
_STAGE = b'"stage": "'
# A unix time of the year 5138.
_LATEST = 1e11
# Bytes of a log that are read at a time.
_CHUNK = 1 << 22


@dataclass
class ProcessLog:
    """What the log of a process tells of it, so far."""

    rank: int
    host: str
    pid: int
    identity: ProcessIdentity | None = None
    shard: tuple[int, int] | None = None
    started: float | None = None
    """unix time of its first line"""
    began: float | None = None
    """unix time at which the process began, as it says itself"""
    last: float = 0.0
    """unix time of its last line"""
    exit_code: int | None = None
    has_worked: bool = False
    error: str | None = None
    """the last error that it has logged"""


@dataclass
class _Place:
    """How far a file has been read: inode, and the bytes up to the end of its last whole line."""

    inode: int
    offset: int = 0
    tells: ProcessLog | None = None
    """None where the name of the file is not that of a process"""


@dataclass
class Logs:
    """What the logs of a work_dir tell; `read` reads what was added since the last call."""

    folder: Path
    processes: dict[str, ProcessLog] = field(default_factory=dict)
    """by the name of the log"""
    units: dict[str, list[UnitTime]] = field(default_factory=dict)
    """by stage, in order of time: the last RECENT_UNITS, and all that a pace needs of late"""
    warnings: list[Warned] = field(default_factory=list)
    """the last NUM_WARNINGS, in order of time"""
    num_warnings: int = 0
    _places: dict[str, _Place] = field(default_factory=dict)
    _finished: set[bytes] = field(default_factory=set)

    def read(self, now: float, finished: Collection[str] = ()) -> None:
        """Read on, at the unix time `now`; of stages that are `finished`, times of units are left out."""
        self._finished = {stage.encode() for stage in finished}
        warned: list[Warned] = []
        for entry in _entries(self.folder):
            with contextlib.suppress(OSError):
                self._read_file(entry.name, entry.path, now, warned)
        if warned:
            self.num_warnings += len(warned)
            self.warnings = sorted([*self.warnings, *warned], key=lambda one: one.time)[-NUM_WARNINGS:]
        for stage, lines in self.units.items():
            # Nearly in order: sorting is quick.
            lines.sort()
            self.units[stage] = _kept(lines, now)

    def _read_file(self, name: str, path: str, now: float, warned: list[Warned]) -> None:
        place = self._places.get(name)
        if place and place.offset == os.stat(path).st_size:
            return
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            if place is None or place.inode != about.st_ino or place.offset > about.st_size:
                place = self._places[name] = _Place(about.st_ino, tells=_process_of(name))
                if place.tells:
                    self.processes[name] = place.tells
            file.seek(place.offset)
            while chunk := file.read(_CHUNK):
                # The rest is half a line, which its rank may still be writing.
                whole = chunk.rfind(b"\n") + 1
                if not whole and len(chunk) < _CHUNK:
                    break
                whole = whole or len(chunk)
                place.offset += whole
                file.seek(place.offset)
                self._take(chunk[:whole].split(b"\n"), place.tells, now, warned)

    def _take(self, lines: list[bytes], tells: ProcessLog | None, now: float, warned: list[Warned]) -> None:
        of_units = []
        for line in lines:
            if _STAGE in line:
                of_units.append(line)
            elif line:
                _take_other(parsed(line), tells, warned)
        found = _unit_times(of_units, now, self._finished)
        for stage, times in found.items():
            self.units.setdefault(stage, []).extend(times)
        if tells and found:
            tells.has_worked = True
            tells.last = max(tells.last, *(times[0].time for times in found.values()))


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.name.startswith("rank-") and entry.name.endswith(".jsonl")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda entry: entry.name)


def _process_of(name: str) -> ProcessLog | None:
    found = LOG_FILE.fullmatch(name)
    return ProcessLog(int(found[1]), found[2], int(found[3])) if found else None


def _unit_times(lines: list[bytes], now: float, unneeded: Collection[bytes] = ()) -> dict[str, list[UnitTime]]:
    """By stage, newest first, what a pace may need of the lines of one log; the last line is there in any case.

    Of each stage, but those `unneeded`, the last RECENT_UNITS lines, and those before them for as long as they are of
    late; the lines of a log are nearly in order of time. The others are not parsed, which would take most of the time.
    """
    found: dict[str, list[UnitTime]] = {}
    longest: dict[str, float] = {}
    finished = set(unneeded)
    for line in reversed(lines):
        start = line.find(_STAGE) + len(_STAGE)
        if found and line[start : line.find(b'"', start)] in finished:
            continue
        entry = parsed(line)
        try:
            stage = str(entry["stage"])
            one = UnitTime(_moment(entry["time"]), amount(entry["seconds"]), amount(entry["answers"]))
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        if one.time > now + CLOCKS_DIFFER_S:
            continue
        found.setdefault(stage, []).append(one)
        longest[stage] = max(longest.get(stage, 0.0), one.seconds)
        if len(found[stage]) >= RECENT_UNITS and one.time < now - lately_s(longest[stage]):
            finished.add(stage.encode())
    return found


def _kept(lines: list[UnitTime], now: float) -> list[UnitTime]:
    """The lines that a pace needs, from lines in order of time."""
    longest = max((line.seconds for line in lines), default=0.0)
    since = now - lately_s(longest)
    first = next((at for at, line in enumerate(lines) if line.time > since), len(lines))
    return lines[max(0, min(first, len(lines) - RECENT_UNITS)) :]


def _take_other(entry: dict, tells: ProcessLog | None, warned: list[Warned]) -> None:
    """A line that is not about a unit."""
    try:
        time = _moment(entry["time"])
        if tells:
            tells.last = max(tells.last, time)
            tells.started = time if tells.started is None else tells.started
        if "process" in entry and tells:
            tells.identity, tells.exit_code, tells.error = ProcessIdentity.from_json(entry["process"]), None, None
            tells.host, tells.started = tells.identity.host, time
            tells.began = _moment(entry["began"]) if "began" in entry else None
            tells.shard = _shard(entry.get("shard"))
        elif "exit_code" in entry and tells:
            tells.exit_code = int(entry["exit_code"])
        elif "message" in entry:
            rank = tells.rank if tells else -1
            warned.append(Warned(time, rank, str(entry.get("level", "warning")), str(entry["message"])))
            if tells and warned[-1].is_error:
                tells.error = warned[-1].message
    except (ValueError, KeyError, TypeError, OverflowError):
        return


def _moment(value: object) -> float:
    """A unix time. Raises ValueError for what no clock says."""
    time = amount(value)
    if time > _LATEST:
        raise ValueError(f"no time: {value!r}")
    return time


def _shard(value: object) -> tuple[int, int] | None:
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    return tuple(value) if is_pair else None
