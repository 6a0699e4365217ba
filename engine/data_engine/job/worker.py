"""What `run` does: ranks take free units of each stage in turn until all are published; rank 0 then pairs.

No rank waits at a barrier. A rank without a free unit polls: the owner of a claimed unit may have died. Ranks that
share split models take part in each other's calls meanwhile: see models/sharding/coordination.py.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_engine import stages
from data_engine.config import RunConfig
from data_engine.errors import IncompleteError, TakenOverError, UserError, kind_of
from data_engine.exit_codes import DONE, FAILED, INCOMPLETE, NOTHING_WRITTEN, STOPPED, WRONG_INPUT
from data_engine.job import published, run_file
from data_engine.job.earlier import incomplete
from data_engine.job.free_units import FreeUnits
from data_engine.job.last_step import alone, pair_all, summarise
from data_engine.job.model_holder import ModelHolder
from data_engine.job.plan import Plan
from data_engine.job.progress import Progress, log_to_stderr
from data_engine.job.warning_log import logged_warnings
from data_engine.models.sharding.coordination import Coordination, Independent, coordinate
from data_engine.pipeline.given import NO_ANSWER
from data_engine.pipeline.runner import StageRunner
from data_engine.processes import process_limit
from data_engine.processes.exit_report import announce, report_exit
from data_engine.processes.ranks import Ranks, set_threads, since_start_s
from data_engine.processes.signals import Stop, Stopped
from data_engine.questions.first_rows import none_usable, require_usable
from data_engine.questions.image_workers import ImageWorkers
from data_engine.sampling.memory import peak_bytes
from data_engine.stages import Stage
from data_engine.store import claims, disk, logs, units
from data_engine.store.made_from import made_from
from data_engine.store.units import UnitResult
from data_engine.store.writer import Writer

log = logging.getLogger(__name__)


def run(config: RunConfig) -> int:
    """Run this rank's part of the job; its exit code, which is also left for the launch script."""
    code, stop, work_dir, reason = FAILED, Stop(config.grace_s).listen(), Path(config.work_dir), None
    announce()
    try:
        try:
            ranks = Ranks.from_environment()
            log_to_stderr(ranks)
            with contextlib.suppress(OSError):
                logs.start(work_dir, ranks.rank, (config.shard_index, config.num_shards), since_start_s())
            with logged_warnings(work_dir, ranks.rank), process_limit.naming():
                code = _run(config, ranks, stop)
        finally:
            stop.disarm()
    except Stopped:
        code = STOPPED
    except OSError as error:
        if disk.is_forbidden(error):
            code = WRONG_INPUT
            raise disk.forbidden(error, work_dir) from None
        if not disk.is_trouble(error):
            raise
        code, reason = STOPPED, disk.describe(error, work_dir, config.stages)
    except UserError:
        code = WRONG_INPUT
        raise
    except IncompleteError:
        code = INCOMPLETE
        raise
    finally:
        report_exit(code, work_dir)
    if code == STOPPED:
        by = f"stopped by {stop.wanted or 'a signal to another rank'}; every published unit is kept"
        log.warning("%s", reason or f"{by}: run the same command again to go on")
    return code


def _run(config: RunConfig, ranks: Ranks, stop: Stop) -> int:
    set_threads(config.threads, ranks)
    plan = Plan.of(config, ranks)
    worker = Worker(plan, stop)
    with coordinate(config, plan.placement, plan.target.device, ranks, stop) as coordination:
        finished = worker.work(coordination)
    written = True
    while finished and ranks.rank == 0 and config.stop_after_stage == stages.PAIR:
        try:
            with alone(plan.work_dir, worker.claims, stop) as scratch:
                written = pair_all(plan, scratch)
            break
        except units.DamagedUnitError as damage:
            if config.continue_from_stage == stages.PAIR or plan.placement.split:
                raise IncompleteError(f"{damage}: run the same command again, with all stages") from None
            log.warning("%s", damage)
        except TakenOverError:
            # Its pairs are newer than those that this start would make.
            raise
        except IncompleteError:
            # Another start may have set a unit aside; what another shard has not computed yet, this one cannot.
            if plan.placement.split or not worker.lacks_units():
                raise
        finished = worker.work(Independent())
    if not finished:
        return STOPPED
    if ranks.rank == 0:
        summarise(plan.work_dir)
    elif config.stop_after_stage == stages.PAIR:
        log.info("all units are published; rank 0 makes the pairs of them")
    return DONE if written else NOTHING_WRITTEN


class Worker:
    """The loop of one rank: claim a unit, compute it, publish it."""

    def __init__(self, plan: Plan, stop: Stop) -> None:
        self.plan, self.stop = plan, stop
        self.claims = claims.Claims(plan.work_dir, plan.ranks.rank)
        self.free = FreeUnits(plan.work_dir, plan.mine)
        self.writer = Writer()
        self.image_workers = ImageWorkers()
        self.held = ModelHolder(plan, self.image_workers)
        todo = plan.stages.between(plan.config.continue_from_stage, plan.config.stop_after_stage)
        self._todo = self.held.ordered(todo)
        # Of the units in hand, by stage and number: what they say that they were computed from.
        self.made_from: dict[tuple[str, int], dict] = {}

    def work(self, coordination: Coordination) -> bool:
        """Publish every unit of this job's shard, up to the last step asked for; False if a signal came."""
        published.check(self.plan, self.claims)
        self._require_earlier()
        with self.image_workers:
            self._look_at_first_rows(self._todo)
            if not self._publish_all(self._todo, coordination):
                return False
        self._require_earlier()
        self.held.release()
        return not coordination.any(bool(self.stop.wanted))

    def _publish_all(self, todo: list[Stage], coordination: Coordination) -> bool:
        """Publish what is left of the stages; False if a signal came."""
        total = len(self.plan.mine) * len(todo)
        names = [stage.name for stage in todo]
        with Progress(
            self.plan.work_dir, names, self.plan.mine, total, self.plan.ranks
        ) as progress, self._everything_written():  # fmt: skip
            # Once, unless a unit of an earlier phase turns out to be damaged.
            while coordination.any(self.free.are_left(todo)):
                # The workers start while the model is loaded.
                self.image_workers.start()
                for phase in coordination.phases(todo):
                    if coordination.any(bool(self.stop.wanted)):
                        return False
                    self._work_through(phase, coordination, progress)
        return True

    def lacks_units(self) -> bool:
        """Whether this start has units of its shard to publish."""
        return self.free.are_left(self._todo)

    def _look_at_first_rows(self, todo: list[Stage]) -> None:
        """Raise UserError, before a model is loaded, where none of them can be used."""
        plan, sampling = self.plan, self.plan.stages.sampling
        if plan.ranks.rank == 0 and sampling in todo and units.missing(plan.work_dir, sampling.name, plan.mine):
            require_usable(plan.questions, plan.config.max_megapixels, self.image_workers.decode)

    def _work_through(self, phase: list[Stage], coordination: Coordination, progress: Progress) -> None:
        """Publish what is left of some stages, as long as no signal comes."""
        if coordination.any(self.free.are_left(phase)) and coordination.split:
            self.held.load(phase[0].model, coordination)
        while not self.stop.wanted:
            if self._work_on_one(phase, coordination, progress):
                continue
            has_written = self._written()
            if not self.free.are_left(phase):
                break
            if not has_written:
                coordination.idle()
        self._written()
        coordination.finish()

    @contextlib.contextmanager
    def _everything_written(self) -> Iterator[None]:
        """At the end, wait until what this rank computed is published.

        Where the body fails and publishing too, the body's exception is raised: it may say what the user must mend.
        """
        try:
            yield
        except Exception:
            try:
                self._written()
            except Exception as error:
                log.error("a unit could not be published either: %s: %s", type(error).__name__, error)
            raise
        except BaseException:
            self._written()
            raise
        self._written()

    def _written(self) -> bool:
        """Wait until what this rank computed is published; True if there was something to wait for."""
        with self.stop.committing():
            return self.writer.wait()

    def _require_earlier(self) -> None:
        """A step starts only where the ones before it, left out on purpose, are complete."""
        plan, first = self.plan, self.plan.config.continue_from_stage
        if lacking := incomplete(plan.work_dir, plan.stages, first, plan.unit_rows, plan.mine):
            raise IncompleteError(lacking[0])

    def _work_on_one(self, todo: Sequence[Stage], coordination: Coordination, progress: Progress) -> bool:
        """Claim and compute the first unit that is free and has what it needs."""
        claimed = self._claim(todo)
        if claimed is None:
            return False
        try:
            self._compute(*claimed, coordination, progress)
        except units.DamagedUnitError as damage:
            log.warning("%s", damage)
        return True

    def _claim(self, todo: Sequence[Stage]) -> tuple[Stage, int, contextlib.ExitStack] | None:
        """Stage and number of the first unit that is free and has what it needs, and what gives it back."""
        for stage, unit in self.free.of(todo):
            with contextlib.ExitStack() as claim:
                taken = claim.enter_context(self.claims.hold(stage.name, unit))
                if taken and not self.free.is_published(stage.name, unit):
                    return stage, unit, claim.pop_all()
        return None

    def _compute(
        self,
        stage: Stage,
        unit: int,
        claim: contextlib.ExitStack,
        coordination: Coordination,
        progress: Progress,
    ) -> None:
        """Compute a unit, and those that its runner has room for beside it.

        A claim is given back when its unit is published, which happens while the next one is computed.
        """
        claims_held = {unit: claim}
        try:
            runner = self.held.runner(stage, coordination)
            start = time.perf_counter()
            self._submit(stage, unit, runner)
            # Once no unit is free, the ones in hand are finished without looking again.
            look_ahead = True
            while claims_held:
                if look_ahead:
                    look_ahead = self._submit_more(stage, runner, claims_held)
                for number, result in runner.poll():
                    now = time.perf_counter()
                    self._hand_over(stage, number, result, now - start, claims_held, progress)
                    start = now
        except BaseException:
            self.held.drop_runner()
            raise
        finally:
            for one in claims_held.values():
                one.close()

    def _submit_more(self, stage: Stage, runner: StageRunner, claims_held: dict[int, contextlib.ExitStack]) -> bool:
        """Claim units for as long as the runner has room for them; False if no unit was free."""
        while runner.wants_more and not self.stop.wanted:
            claimed = self._claim([stage])
            if claimed is None:
                return False
            _, unit, claim = claimed
            claims_held[unit] = claim
            self._submit(stage, unit, runner)
        return True

    def _submit(self, stage: Stage, unit: int, runner: StageRunner) -> None:
        work = self.plan.unit_work(stage, unit)
        self.made_from[stage.name, unit] = made_from(stage, self.plan.bound, work.inputs)
        runner.submit(work)

    def _hand_over(
        self, stage: Stage, unit: int, result: UnitResult, seconds: float, claims_held: dict, progress: Progress
    ) -> None:
        """Have a result published by the writer's thread, which gives the claim back."""
        left_out = [row for row in result.quarantined + result.missing if row[1] != NO_ANSWER]
        if left_out and self.plan.config.on_bad_row == "error":
            idx, reason = left_out[0]
            raise UserError(f"row {idx!r} cannot be used: {reason} (on_bad_row is error; skip leaves such rows out)")
        if unit == self.plan.mine.start and not result.table.num_rows:
            self._refuse_useless(stage, left_out, result.missing)

        questions, peak = len(self.plan.unit_rows[unit]), peak_bytes(self.plan.target.device)
        facts = self.made_from.pop((stage.name, unit))

        def publish() -> None:
            current = run_file.current(self.plan.work_dir, stage, self.plan.bound, self.plan.figures)
            units.publish_result(self.plan.work_dir, stage.name, unit, result, facts, current)
            progress.unit_done(stage.name, unit, result, questions=questions, seconds=seconds, peak_bytes=peak)

        with self.stop.committing():
            self.writer.hand_over(publish, claims_held.pop(unit))

    def _refuse_useless(self, stage: Stage, left_out: list[units.Row], missing: list[units.Row]) -> None:
        """Raise UserError where the first unit of a stage has no row that could be used, all for the same reason."""
        kinds = {kind_of(reason) for _, reason in left_out}
        if len(kinds) == 1 and not units.published(self.plan.work_dir, stage.name):
            mend = "Mend the dataset or the flags, or take these rows out"
            if stage.name == "rule":
                mend = f'Mend rule "{self.plan.config.rule}" or the dataset, or take these rows out'
                # A rule reads no picture: where it leaves a row missing, the machine has failed.
                if missing:
                    mend = "See to the memory, the disks and the limits of this machine, and run the same command again"
            raise UserError(
                f"{stage.name}: {none_usable(len(left_out), ' of the dataset')}, for this reason: {left_out[0][1]}. "
                f"{mend}"
            )
