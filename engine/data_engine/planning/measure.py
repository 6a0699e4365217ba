"""`validate --measure`: a few units of the user's own questions, timed as a run would compute them, and what follows.

The processes are those of timed.py: on a CPU as many as a machine of the run has ranks, since they share its memory and
caches, on a GPU one. Time to load counts once a rank and model; a unit's time is that of whole units, idle tails and
all; ranks take units one by one, so that the last one may work alone. No torch here.
"""

import heapq
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_engine.duration import duration
from data_engine.errors import UserError
from data_engine.planning import sizes
from data_engine.planning.found import Found
from data_engine.plural import plural
from data_engine.processes.ranks import Ranks, since_start_s
from data_engine.store.room import nearest_folder

BUDGET_S = 45.0
# Of what is measured for a minute, the rest of the hour may differ by so much.
LEAST_SPREAD = 0.1
# Of the libraries that a rank imports, the part of the launcher, and of the process that checks the weights, by the
# processor time that they take.
LAUNCHER, CHECKER = 0.4, 0.55
# Of its processors, a rank has at least so much where no other program needs them.
BUSY = 0.6
# Places of the two in what timed.py tells.
WALL, CPU = 0, 1
REFRESH_S = 5.0


def measure(found: Found, ranks: Ranks) -> dict:
    """Seconds by stage for as many ranks and for one, device-seconds, and a range of the whole.

    Raises UserError for what a run would refuse, and for models that are split.
    """
    checked_s = since_start_s()
    device = found.heavy["device"]
    together = ranks.local_world_size if device == "cpu" else 1
    with tempfile.TemporaryDirectory(
        prefix="data-engine-measure-", dir=nearest_folder(Path(found.config.work_dir))
    ) as folder:
        results = _results([_start(found, rank, together, Path(folder), BUDGET_S) for rank in range(together)])
    by_clock, of_processors = (Measured.of(results, clock) for clock in (WALL, CPU))
    told = extrapolate(found, by_clock, ranks.world_size, checked_s)
    told |= {"processor_seconds": processor_seconds(found, of_processors, ranks.world_size)}
    share = of_processors.computing_s / max(by_clock.computing_s, 1e-9) / results[0]["threads"]
    told["processor_share"] = share
    if device == "cpu" and share < BUSY:
        found.warnings.append(
            f"the ranks had {share:.0%} of their {plural(results[0]['threads'], 'processor')} each while they were "
            "measured: other programs may be at work on this machine, and the run is faster without them"
        )
    return told


@dataclass(frozen=True)
class Measured:
    """What the ranks measured, as one rank of them has it on average; seconds."""

    import_s: float
    """until Python has its libraries"""
    plan_s: float
    """until a rank knows what to do: the dataset and the checkpoints are hashed"""
    loads: Mapping[str, float]
    """by role"""
    size: int
    """questions of a whole unit"""
    units: Mapping[str, Sequence[tuple[int, float]]]
    """by stage, questions and seconds of each unit that was timed"""
    roles: Mapping[str, str]
    """of stages"""
    tokens: Mapping[str, float | None]
    """of an answer, by stage"""
    bytes: Mapping[str, float]
    """of an answer, by stage"""
    last_s: float
    """of pairing and report, of so many questions"""
    last_questions: int
    last_a_question_s: float
    """what each further question adds"""
    workers_s: float
    """of the processes that decode pictures; processor time alone"""

    @classmethod
    def of(cls, results: Sequence[Mapping], clock: int) -> "Measured":
        """By what each process of timed.py told, by one of its two clocks."""

        def mean(of: Callable[[Mapping], Sequence[float]]) -> float:
            return statistics.fmean(of(result)[clock] for result in results)

        first = results[0]
        names, last = first["stages"], first["last"]
        timed = {
            name: [(count, spent[clock]) for result in results for count, spent in result["stages"][name]["times"]]
            for name in names
        }
        return cls(
            mean(lambda result: result["import_s"]), mean(lambda result: result["plan_s"]),
            {role: mean(lambda result, role=role: result["loads"][role]) for role in first["loads"]}, first["size"],
            timed, {name: names[name]["role"] for name in names},
            {name: names[name]["tokens_an_answer"] for name in names},
            {name: names[name]["bytes_an_answer"] for name in names},
            mean(lambda result: result["last"]["seconds"]) if last else 0.0, last.get("questions", 0),
            mean(lambda result: result["last"]["a_question"]) if last else 0.0,
            mean(lambda result: result["workers_s"]),
        )  # fmt: skip

    def unit_s(self, stage: str, questions: int) -> float:
        """Of a unit of so many questions: the mean of whole ones, else by the line through the parts."""
        timed = self.units[stage]
        whole = [seconds for count, seconds in timed if count == self.size]
        if whole:
            return statistics.fmean(whole) * questions / self.size
        slope, at_zero = line(timed)
        return at_zero + slope * questions

    @property
    def computing_s(self) -> float:
        """Of all units that were timed."""
        return sum(seconds for units in self.units.values() for _, seconds in units)

    def spread(self, stage: str) -> float:
        """How uncertain the mean of its units is, as a share of it: two standard errors."""
        a_question = [seconds / count for count, seconds in self.units[stage] if count == self.size]
        if len(a_question) < 2:
            return 0.5
        return max(
            LEAST_SPREAD, 2 * statistics.stdev(a_question) / statistics.fmean(a_question) / len(a_question) ** 0.5
        )


def line(timed: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds a question, and of none, by least squares; neither is below 0."""
    counts = {count for count, _ in timed}
    if len(counts) < 2:
        return statistics.fmean(seconds / count for count, seconds in timed), 0.0
    slope, at_zero = statistics.linear_regression([count for count, _ in timed], [seconds for _, seconds in timed])
    if slope < 0 or at_zero < 0:
        # Through zero, by the largest part.
        count, seconds = max(timed)
        return seconds / count, 0.0
    return slope, at_zero


def shared(work: Sequence[tuple[str, str, Sequence[float]]], loads: Mapping[str, float], ranks: int) -> list[float]:
    """When each stage ends, where ranks take its units in turn: (name, role, seconds of each unit) by stage.

    A rank that takes a unit of another model loads that one first. No rank waits for the others between stages.
    """
    free = [(0.0, rank) for rank in range(ranks)]
    held: dict[int, str] = {}
    ends, latest = [], 0.0
    for _, role, unit_seconds in work:
        for seconds in unit_seconds:
            at, rank = heapq.heappop(free)
            if role and held.get(rank) != role:
                at, held[rank] = at + loads.get(role, 0.0), role
            heapq.heappush(free, (at + seconds, rank))
            latest = max(latest, at + seconds)
        ends.append(latest)
    return ends


def extrapolate(found: Found, measured: Measured, world_size: int, checked_s: float) -> dict:
    """The seconds of the units that are left, for `world_size` ranks and for one; `checked_s` is what checking took."""
    rows, left = sizes.unit_rows(found), sizes.units_left(found)
    work = [
        (stage.name, measured.roles[stage.name],
         [measured.unit_s(stage.name, len(rows[unit])) for unit in left[stage.name]])
        for stage in sizes.todo(found)
    ]  # fmt: skip
    # The check, the launcher's own libraries, then those of the ranks, and what each of them reads before it works.
    start_s = checked_s + (1 + LAUNCHER) * measured.import_s + measured.plan_s
    last_s = _last_s(found, measured)
    by_ranks = {count: [0.0, *shared(work, measured.loads, count)] for count in (world_size, 1)}
    lines = [{"name": "start", "seconds": start_s, "seconds_1_rank": start_s}]
    for at, (name, _, unit_seconds) in enumerate(work):
        many, one = (by_ranks[count][at + 1] - by_ranks[count][at] for count in (world_size, 1))
        lines.append({
            "name": name, "seconds": many, "seconds_1_rank": one,
            "unit_seconds": statistics.fmean(unit_seconds) if unit_seconds else None,
            "units_timed": len(measured.units[name]), "tokens_an_answer": measured.tokens[name],
            "bytes_an_answer": measured.bytes[name],
        })  # fmt: skip
    lines.append({"name": "pairs and report", "seconds": last_s, "seconds_1_rank": last_s})
    # The job holds the devices of all ranks until it ends: also while it starts, and while rank 0 alone pairs.
    lines = [line | {"device_seconds": line["seconds"] * world_size} for line in lines]
    total, alone, device_s = (sum(one[key] for one in lines) for key in ("seconds", "seconds_1_rank", "device_seconds"))
    off = sum(line["seconds"] * measured.spread(name) for line, (name, *_) in zip(lines[1:], work, strict=False))
    off += LEAST_SPREAD * (start_s + last_s)
    timed = sum(len(one) for one in measured.units.values())
    kind = "CPU" if found.heavy["device"] == "cpu" else "GPU"
    return {
        "world_size": world_size, "kind": kind, "stages": lines, "seconds": total, "seconds_1_rank": alone,
        "device_seconds": device_s, "seconds_range": [max(0.0, total - off), total + off],
        "loads": dict(measured.loads), "told": f"{timed} units and parts of units timed on this machine",
    }  # fmt: skip


def processor_seconds(found: Found, measured: Measured, world_size: int) -> float:
    """Of the whole run, all processes together."""
    rows, left = sizes.unit_rows(found), sizes.units_left(found)
    computed = sum(
        measured.unit_s(name, len(rows[unit])) for name, numbers in left.items() for unit in numbers
    )  # fmt: skip
    each = measured.import_s + measured.plan_s + sum(measured.loads.values()) + measured.workers_s
    # The launcher and the process that checks the weights import some of the same libraries.
    others = time.process_time() + (LAUNCHER + CHECKER) * measured.import_s
    return computed + world_size * each + others + _last_s(found, measured)


def _last_s(found: Found, measured: Measured) -> float:
    """Of pairing and report; 0 where the start stops before them, and timed.py has not measured them."""
    more = len(found.questions) - measured.last_questions
    return max(0.0, measured.last_s + more * measured.last_a_question_s)


def _start(found: Found, rank: int, together: int, folder: Path, budget_s: float) -> subprocess.Popen:
    """A process of timed.py, as one rank of so many on this machine."""
    size = max(map(len, sizes.unit_rows(found)))
    config = replace(
        found.config, work_dir=str(folder / str(rank) / "work"), unit_size=size, num_shards=1, shard_index=0,
        continue_from_stage=0, export=None,
    )  # fmt: skip
    request = {"config": asdict(config), "rank": rank, "world_size": together, "budget_s": budget_s}
    command = [sys.executable, "-m", "data_engine.planning.timed"]
    (folder / str(rank)).mkdir()
    with open(folder / str(rank) / "errors", "wb") as errors:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    child.errors_file = folder / str(rank) / "errors"
    child.stdin.write(json.dumps(request | {"started": time.time()}))
    child.stdin.close()
    return child


def _progress(step: str | None, so_far: float) -> str:
    """A line of the progress. Past the time that was meant, as while a large model loads, what is left is not known."""
    left = BUDGET_S + 15 - so_far
    return f"measuring {step}: {duration(so_far)} so far" + (f", about {duration(left)} left" if left >= 5 else "")


def _results(children: Sequence[subprocess.Popen]) -> list[dict]:
    """What each of them found; tells the progress of the first. Raises UserError for the user's mistakes."""
    found: list[dict] = [{} for _ in children]

    def follow(at: int) -> None:
        started, told = time.monotonic(), 0.0
        for text in children[at].stdout:
            line = json.loads(text)
            found[at] |= line
            now = time.monotonic()
            if at == 0 and "result" not in line and ("step" in line or now - told > REFRESH_S):
                told = now
                print(_progress(found[0].get("step"), now - started), file=sys.stderr, flush=True)

    threads = [threading.Thread(target=follow, args=(at,)) for at in range(len(children))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()
    for child, one in zip(children, found, strict=True):
        if "error" in one:
            raise UserError(f"the measurement was refused: {one['error']}")
        if "result" not in one:
            raise RuntimeError(f"a process that measures ended too early:\n{child.errors_file.read_text()[-4000:]}")
    return [one["result"] for one in found]
