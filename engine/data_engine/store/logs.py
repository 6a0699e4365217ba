"""logs/rank-RANK-HOST-PID-PLACE.jsonl: what a process did and how long it took, a JSON line each; all others read it.

The first line says which process it is. A line about a unit has a stage, one about anything else that took time an
event, a warning its level and message, the last line an exit code. Each process has a file of its own: appending from
several hosts to one file loses lines on a network file system.
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from data_engine.store.process_identity import ProcessIdentity

# Rank, host and process id in the name of a log.
LOG_FILE = re.compile(r"rank-(\d+)-(.*)-(\d+)-[0-9a-f]{8}\.jsonl")
# Characters of a message that a line holds; messages may quote what a dataset holds.
MESSAGE_LENGTH = 500
# What a line about a unit may tell besides.
_MORE = ("tokens", "out_of_memory", "peak_gb")


def log_path(work_dir: Path, rank: int) -> Path:
    """The log of this process, which is that rank."""
    return work_dir / "logs" / log_name(ProcessIdentity.of_this_process(), rank)


def log_name(process: ProcessIdentity, rank: int) -> str:
    """The name of the log of a process that is that rank."""
    # Shards have ranks of equal number, containers may have equal host names and process ids, hosts equal names.
    place = repr((process.host, process.boot, process.namespace)).encode(errors="replace")
    host = re.sub(r"[^A-Za-z0-9._-]", "_", process.host)[:100]
    return f"rank-{rank}-{host}-{process.pid}-{hashlib.blake2b(place, digest_size=4).hexdigest()}.jsonl"


def append(path: Path, entry: dict) -> None:
    """Add a JSON line to a file, on a line of its own where a rank that was killed has left half a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")


def note(work_dir: Path, rank: int, event: str, seconds: float) -> None:
    """Note something that took time and is no unit: loading a model, pairing."""
    append(log_path(work_dir, rank), {"time": time.time(), "event": event, "seconds": round(seconds, 3)})


def start(work_dir: Path, rank: int, shard: tuple[int, int], age_s: float) -> None:
    """Note that this process begins its work: who it is, which of how many shards it works on, and how old it is."""
    now, me = time.time(), vars(ProcessIdentity.of_this_process())
    line = {"time": now, "rank": rank, "process": me, "shard": list(shard), "began": now - age_s}
    append(log_path(work_dir, rank), line)


def warn(work_dir: Path, rank: int, level: str, message: str) -> None:
    """Note a warning, or an error, of this process."""
    line = {"time": time.time(), "level": level, "message": message[:MESSAGE_LENGTH]}
    append(log_path(work_dir, rank), line)


def unit_lines(work_dir: Path) -> Iterator[dict]:
    """The lines about units, of one process after the other; stage, time, seconds and answers are there."""
    for _, entry in unit_lines_by_rank(work_dir):
        yield entry


def unit_lines_by_rank(work_dir: Path) -> Iterator[tuple[str, dict]]:
    """The lines about units, each with the rank that wrote it, as `status` calls it: SHARD:RANK in several shards."""
    for rank, entry in _lines(work_dir):
        try:
            entry |= {"stage": str(entry["stage"])}
            entry |= {name: amount(entry[name]) for name in ("time", "seconds", "answers")}
            entry |= {name: amount(entry[name]) for name in _MORE if name in entry}
            hash(entry.get("unit"))
        except (ValueError, KeyError, TypeError):
            continue
        yield rank, entry


def events(work_dir: Path) -> Iterator[tuple[str, float]]:
    """The other lines: what was done, and the seconds that it took."""
    for _, entry in _lines(work_dir):
        try:
            yield str(entry["event"]), amount(entry["seconds"])
        except (ValueError, KeyError, TypeError):
            continue


def _lines(work_dir: Path) -> Iterator[tuple[str, dict]]:
    """(rank, line) of every log."""
    for path in sorted((work_dir / "logs").glob("rank-*.jsonl")):
        rank = path.name.removeprefix("rank-").partition("-")[0].removesuffix(".jsonl")
        with open(path, "rb") as file:
            named = rank
            for line in file:
                if entry := parsed(line):
                    # Ranks of several shards have equal numbers.
                    named = _named(rank, entry["shard"]) if "shard" in entry else named
                    yield named, entry


def _named(rank: str, shard: object) -> str:
    several = isinstance(shard, list) and len(shard) == 2 and shard[1] != 1
    return f"{shard[0]}:{rank}" if several else rank


def parsed(line: bytes) -> dict:
    """The JSON object of a line; an empty one where it is none, such as half a line of a rank that was killed."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def amount(value: object) -> float:
    """A number that a line tells. Raises ValueError for one below 0 or not finite, TypeError for what is none."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"no amount: {value!r:.100}")
    return number
