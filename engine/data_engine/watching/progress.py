"""How far a run is, as data, and the pure functions that make it of what was read: pace, time left, states of ranks."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data_engine.exit_codes import DONE, INCOMPLETE, NOTHING_WRITTEN, STOPPED
from data_engine.store.claims import LAPSE_S

# A pace is the mean over a stage's last units, so that it follows a change of machines.
RECENT_UNITS = 200
# Lines dated further in the future come from a clock that ran ahead; they would count as the latest until then.
CLOCKS_DIFFER_S = 60
# States of the pairs.
WAITING, READY, WRITTEN = "waiting", "ready", "written"
# States of ranks that work or may work, then of those that need a look, then of those that came to their end.
ALIVE = ("working", "pairing", "starting", "waiting")
TROUBLED = ("failed", "dead", "stalled", "silent")
ENDED = ("incomplete", "stopped", "finished")
_BY_EXIT_CODE = {DONE: "finished", NOTHING_WRITTEN: "finished", INCOMPLETE: "incomplete", STOPPED: "stopped"}


class UnitTime(NamedTuple):
    """A unit as a log tells of it: when it was done (unix time), the seconds that it took, its answers."""

    time: float
    seconds: float
    answers: float


@dataclass(frozen=True)
class Pace:
    """How fast a stage is computed: the mean of its last units, by the ranks that still work."""

    seconds_a_unit: float
    answers_a_unit: float
    num_ranks: int
    """ranks that worked at the same time lately; 0 where none did"""

    @property
    def answers_a_second(self) -> float:
        return self.answers_a_unit / self.seconds_a_unit * self.num_ranks

    def seconds_left(self, num_units: int) -> float | None:
        """For so many units; None where nobody works."""
        return num_units * self.seconds_a_unit / self.num_ranks if self.num_ranks else None


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is."""

    name: str
    done: int
    total: int
    """units"""
    pace: Pace | None
    """None where no unit is logged"""
    num_holding: int = 0
    """ranks that hold a claim on one of its units"""

    @property
    def left(self) -> int:
        return self.total - self.done

    @property
    def num_ranks(self) -> int:
        """Ranks at work on it."""
        return self.pace.num_ranks if self.pace else self.num_holding


@dataclass(frozen=True)
class Warned:
    """A warning or an error that a rank has logged."""

    time: float
    rank: int
    level: str
    message: str

    @property
    def is_error(self) -> bool:
        return self.level in ("error", "critical")


@dataclass(frozen=True)
class ProcessSeen:
    """What was read of a process of the run."""

    rank: int
    host: str
    pid: int
    shard: tuple[int, int] | None
    """which of how many; None where its log does not tell"""
    started: float
    """unix time of its first line"""
    began: float
    """unix time at which it began, seconds earlier: its libraries are imported first"""
    last_sign: float
    """unix time of its last line, or touch of a claim, by the clock that dated it"""
    age_s: float
    """seconds since its last sign of life"""
    held: tuple[tuple[str, int], ...]
    """(stage, unit) of its claims"""
    is_pairing: bool = False
    """it has the claim on making the pairs"""
    exit_code: int | None = None
    is_here: bool = False
    """its process id means the same to the process that reads"""
    is_gone: bool = False
    """it has certainly ended"""
    has_worked: bool = False
    """it has published a unit"""
    log: str | None = None
    """the path of its log; None where it has none"""
    error: str | None = None
    """the last error that its log holds"""


@dataclass(frozen=True)
class RankProgress:
    """What a rank is at; ranks of several shards may have equal numbers."""

    rank: int
    host: str
    pid: int
    shard: tuple[int, int] | None
    state: str
    """one of ALIVE, TROUBLED and ENDED"""
    stage: str | None
    units: tuple[int, ...]
    """those that it has in hand"""
    age_s: float
    """seconds since its last sign of life"""
    exit_code: int | None
    log: str | None = None
    """the path of its log; None where it has none"""
    error: str | None = None
    """the last error that its log holds"""

    @property
    def name(self) -> str:
        """Its number; with that of its shard, as SHARD:RANK, where there are several."""
        return f"{self.shard[0]}:{self.rank}" if self.shard and self.shard[1] > 1 else str(self.rank)


@dataclass(frozen=True)
class Progress:
    """How far a run is, at one moment."""

    work_dir: str
    time: float
    num_questions: int
    unit_size: int
    num_units: int
    adapters: tuple[str, ...]
    """what is told of the adapters of its models"""
    stages: tuple[StageProgress, ...]
    ranks: tuple[RankProgress, ...]
    warnings: tuple[Warned, ...]
    """the last ones, in order of time"""
    num_warnings: int
    """all that are logged"""
    pairs: str
    """WAITING for units, READY to be made, or WRITTEN"""

    @property
    def is_done(self) -> bool:
        return self.pairs == WRITTEN and not any(stage.left for stage in self.stages)

    @property
    def units_done(self) -> int:
        return sum(stage.done for stage in self.stages)

    @property
    def units_total(self) -> int:
        return sum(stage.total for stage in self.stages)

    @property
    def num_working(self) -> int:
        """Ranks at work, on any stage."""
        at_work = sum(rank.state == "working" for rank in self.ranks)
        return max([at_work, *(stage.pace.num_ranks for stage in self.stages if stage.pace and stage.left)])

    @property
    def seconds_left(self) -> float | None:
        """Until the last unit, as if all ranks at work shared what is left; None where a stage has no pace yet."""
        open_stages = [stage for stage in self.stages if stage.left]
        if any(stage.pace is None for stage in open_stages):
            return None
        return self.seconds_left_at_least

    @property
    def seconds_left_at_least(self) -> float | None:
        """The seconds left of the stages that have a pace; None where none has, or nobody works."""
        known = [stage for stage in self.stages if stage.left and stage.pace]
        if not any(stage.left for stage in self.stages):
            return 0.0
        if not known or not self.num_working:
            return None
        return sum(stage.left * stage.pace.seconds_a_unit for stage in known) / self.num_working


def pace_of(lines: Sequence[UnitTime], now: float, num_holding: int = 0, num_alive: int | None = None) -> Pace | None:
    """The pace of a stage from its units in order of time.

    `num_holding` ranks hold a claim on one of its units now, and `num_alive` may work at all, where that is known.
    """
    recent = lines[-RECENT_UNITS:]
    seconds = sum(line.seconds for line in recent)
    if seconds <= 0:
        return None
    mean = seconds / len(recent)
    num_ranks = most_at_once(lines_since(lines, now - lately_s(mean)))
    if num_alive is not None:
        num_ranks = min(num_ranks, num_alive)
    return Pace(mean, sum(line.answers for line in recent) / len(recent), max(num_ranks, num_holding))


def lately_s(seconds_a_unit: float) -> float:
    """A working rank logs a unit about every `seconds_a_unit`; after five times that it counts as stopped."""
    return max(60, 5 * seconds_a_unit)


def lines_since(lines: Iterable[UnitTime], time: float) -> list[UnitTime]:
    return [line for line in lines if line.time > time]


def most_at_once(lines: Iterable[UnitTime]) -> int:
    """How many units were worked on at the same moment; a rank that was started again has a second log."""
    ends = [(line.time, -1) for line in lines]
    starts = [(line.time - line.seconds, 1) for line in lines]
    # An end sorts before a start at the same moment.
    return max(itertools.accumulate(step for _, step in sorted(ends + starts)), default=0)


def ranks_of(seen: Iterable[ProcessSeen], pairs: str) -> tuple[RankProgress, ...]:
    """The ranks of the run, those that need a look first; processes of earlier starts are left out."""
    seen = list(seen)
    found = [_rank_of(one, pairs) for one in seen if not _is_superseded(one, seen, pairs)]
    order = [*TROUBLED, *ALIVE, *ENDED]
    return tuple(sorted(found, key=lambda rank: (order.index(rank.state), rank.shard or (0, 0), rank.rank, rank.host)))


def _rank_of(one: ProcessSeen, pairs: str) -> RankProgress:
    state = state_of(one, pairs)
    stage = one.held[0][0] if one.held else None
    units = tuple(sorted(unit for name, unit in one.held if name == stage))
    return RankProgress(
        one.rank, one.host, one.pid, one.shard, state, stage, units, one.age_s, one.exit_code, one.log, one.error
    )  # fmt: skip


def state_of(one: ProcessSeen, pairs: str) -> str:
    """What a process is at, in one word."""
    if one.exit_code is not None:
        return _BY_EXIT_CODE.get(one.exit_code, "failed")
    if one.is_gone:
        return "dead"
    if one.held or one.is_pairing:
        return "stalled" if one.age_s > LAPSE_S else "working" if one.held else "pairing"
    # A rank without a claim writes nothing: of another host, only a recent line tells that it lives.
    if not one.is_here and one.age_s > LAPSE_S:
        return "silent"
    if not one.has_worked:
        return "starting"
    return "pairing" if pairs == READY and one.rank == 0 else "waiting"


def _is_superseded(one: ProcessSeen, others: Iterable[ProcessSeen], pairs: str) -> bool:
    """Whether it works no more, and its shard was started again since."""
    if state_of(one, pairs) in ALIVE:
        return False
    return any(_is_of_later_start(other, one) and _is_same_shard(one, other) for other in others)


def _is_of_later_start(other: ProcessSeen, one: ProcessSeen) -> bool:
    """A start has a rank once. Its other ranks begin together, and may log their first lines after one has failed."""
    return (other.started if other.rank == one.rank else other.began) > one.last_sign


def _is_same_shard(one: ProcessSeen, other: ProcessSeen) -> bool:
    """Whether two processes are of one shard; where a run was divided anew, of any shard of the earlier division."""
    if one.shard is None or other.shard is None:
        return True
    return one.shard == other.shard or one.shard[1] != other.shard[1]
