"""Reads how far a run is from its work_dir, look after look; a later look reads only what has changed since.

Units are counted from the published files, pace, starts, ends and warnings come from logs/rank-*.jsonl, signs of life
from claims/. Works while a run is going, from any machine that sees the folder, over all ranks and shards.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_engine.errors import UserError
from data_engine.models.checkpoints.adapter_folder import adapters_told
from data_engine.of_pairing import pairs_file
from data_engine.preferences.pairs_metadata import read_funnel
from data_engine.stages import RunStages, known
from data_engine.store import claims, logs, units
from data_engine.store.process_identity import ProcessIdentity
from data_engine.watching.log_lines import Logs, ProcessLog
from data_engine.watching.progress import (
    ALIVE,
    READY,
    WAITING,
    WRITTEN,
    ProcessSeen,
    Progress,
    RankProgress,
    StageProgress,
    pace_of,
    ranks_of,
)

# A folder is listed again after so long even if its date is the same: dates may be coarse, or remembered by a client of
# a network file system.
LIST_AGAIN_S = 30.0


class UnitFolder:
    """Counts the published units of a stage; its folder is listed only when its date has changed."""

    def __init__(self, work_dir: Path, stage: str, num_units: int) -> None:
        self._work_dir, self._stage, self._num_units = work_dir, stage, num_units
        self._done = 0
        self._date: int | None = None
        self._listed = -LIST_AGAIN_S

    def done(self, monotonic: float) -> int:
        """How many of the run's units are published, at that time of the monotonic clock."""
        try:
            date = os.stat(self._work_dir / self._stage).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            date = None
        if date != self._date or monotonic - self._listed >= LIST_AGAIN_S:
            # The date was asked for before: what comes in between is counted by the next look.
            found = units.published(self._work_dir, self._stage)
            self._done = (
                len(found) if max(found, default=0) < self._num_units else sum(map(self._num_units.__gt__, found))
            )
            self._date, self._listed = date, monotonic
        return self._done


@dataclass
class _Sign:
    """The last sign of life of a process: its date, and when this process saw it change, by the monotonic clock."""

    date: float
    first_age_s: float
    seen: float
    has_changed: bool = False

    def age_s(self, monotonic: float) -> float:
        """Seconds since it. A change that was seen counts by this machine's clock, as clocks of machines differ."""
        since = monotonic - self.seen
        return since if self.has_changed else self.first_age_s + since


class Reader:
    """Reads one work_dir, again and again."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir, self._me = work_dir, ProcessIdentity.of_this_process()
        self._folders: dict[tuple[str, int], UnitFolder] = {}
        self._logs = Logs(work_dir / "logs")
        self._signs: dict[str, _Sign] = {}
        self._gone: set[str] = set()

    def look(self, run_file: Mapping, now: float, monotonic: float) -> Progress:
        """How far the run is at the unix time `now`, which is `monotonic` by the monotonic clock.

        `run_file` is run.json of now. Raises UserError where it is not one of a run.
        """
        planned = planned_units(self._work_dir, run_file)
        held = claims.held(self._work_dir)
        names = _stage_names(run_file, held)
        total = planned["num_units"]
        # Asked before the units are counted, so that a run that is done has all of them.
        is_written = _is_written(self._work_dir, planned["num_questions"])
        done = {name: self._done(name, total, monotonic) for name in names}
        self._logs.read(now, [name for name in names if done[name] >= total])
        pairs = WAITING if any(count < total for count in done.values()) else READY
        ranks = ranks_of(self._processes(set(names), held, now, monotonic), pairs)
        # Those that are there are of an earlier start where another one is about to make them anew.
        if is_written and not any(rank.state in ("starting", "pairing") for rank in ranks):
            pairs = WRITTEN
        stages = tuple(self._stage(name, count, total, ranks, now) for name, count in done.items())
        return Progress(
            str(self._work_dir), now, planned["num_questions"], planned["unit_size"], total,
            tuple(adapters_told(run_file)), stages, ranks, tuple(self._logs.warnings), self._logs.num_warnings, pairs,
        )  # fmt: skip

    def _done(self, stage: str, total: int, monotonic: float) -> int:
        if (stage, total) not in self._folders:
            self._folders[stage, total] = UnitFolder(self._work_dir, stage, total)
        return self._folders[stage, total].done(monotonic)

    def _stage(self, name: str, done: int, total: int, ranks: tuple[RankProgress, ...], now: float) -> StageProgress:
        holding = sum(rank.state == "working" and rank.stage == name for rank in ranks)
        alive = sum(rank.state in ALIVE or rank.state == "silent" for rank in ranks)
        pace = pace_of(self._logs.units.get(name, []), now, holding, alive if ranks else None)
        return StageProgress(name, done, total, pace, holding)

    def _processes(
        self, known: set[str], held: Sequence[claims.Held], now: float, monotonic: float
    ) -> list[ProcessSeen]:
        """Every process that has a log, or is in `held`, the claims; `known` are the names of the run's stages."""
        found, by_owner = dict(self._logs.processes), {}
        for claim in held:
            name = _log_name(claim)
            by_owner.setdefault(name, []).append(claim)
            if name not in found:
                found[name] = ProcessLog(claim.rank, claim.owner.host, claim.owner.pid, last=claim.touched)
        return [self._seen(name, log, by_owner.get(name, []), known, now, monotonic) for name, log in found.items()]

    def _seen(
        self, name: str, log: ProcessLog, held: list[claims.Held], known: set[str], now: float, monotonic: float
    ) -> ProcessSeen:
        identity = log.identity or (held[0].owner if held else None)
        last = max([log.last, *(claim.touched for claim in held)])
        in_hand = sorted((claim.stage, claim.unit) for claim in held if claim.stage in known)
        started = log.last if log.started is None else log.started
        return ProcessSeen(
            log.rank, log.host, log.pid, log.shard, started, started if log.began is None else log.began, last,
            self._sign(name, last, now, monotonic), tuple(in_hand),
            is_pairing=any(claim.stage == claims.PAIRING for claim in held), exit_code=log.exit_code,
            is_here=identity is not None and self._me.sees(identity),
            is_gone=log.exit_code is None and identity is not None and self._is_gone(name, identity),
            has_worked=log.has_worked,
            log=str(self._logs.folder / name) if name in self._logs.processes else None, error=log.error,
        )  # fmt: skip

    def _sign(self, name: str, date: float, now: float, monotonic: float) -> float:
        """Seconds since the last sign of life of a process, of which the newest is of `date` (unix time)."""
        sign = self._signs.get(name)
        if sign is None:
            sign = self._signs[name] = _Sign(date, max(0.0, now - date), monotonic)
        elif date > sign.date:
            self._signs[name] = sign = _Sign(date, 0.0, monotonic, has_changed=True)
        return sign.age_s(monotonic)

    def _is_gone(self, name: str, identity: ProcessIdentity) -> bool:
        if name not in self._gone and self._me.sees(identity) and identity.has_ended():
            self._gone.add(name)
        return name in self._gone


def _stage_names(run_file: Mapping, held: Sequence[claims.Held]) -> list[str]:
    """The stages of the last start, and others that a rank works on, in a start with other sources of reward."""
    own = RunStages.of(run_file.get("config", {})).by_name
    return [*own, *sorted({claim.stage for claim in held if claim.stage in known()} - own.keys())]


def _log_name(claim: claims.Held) -> str:
    return logs.log_name(claim.owner, claim.rank)


def planned_units(work_dir: Path, run_file: Mapping) -> dict[str, int]:
    """num_questions, unit_size and num_units of a run. Raises UserError where run.json does not say them."""
    try:
        found = {name: int(run_file["units"][name]) for name in ("num_questions", "unit_size", "num_units")}
        if min(found.values()) < 0:
            raise ValueError(f"units below 0: {found}")
        return found
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f'"{work_dir}/run.json" is not one of a run: {type(error).__name__}: {error}') from None


def _is_written(work_dir: Path, num_questions: int) -> bool:
    """Whether the pairs are written, those of as many questions as the run asks: --limit may have grown since."""
    has_dataset = any((work_dir / "dataset").glob("dpo_dataset*.parquet"))
    if not pairs_file(work_dir).is_file():
        return has_dataset
    try:
        funnel = read_funnel(work_dir)
    # A file that is broken, or of an earlier version.
    except (ValueError, KeyError, TypeError):
        return has_dataset
    # dataset/ can hold none of some pairs, and is not there then.
    nothing_fits = not funnel.written and bool(funnel.not_fitting or funnel.not_written)
    return funnel.questions == num_questions and (has_dataset or nothing_fits)
