"""What `run` does: ranks take free units of each stage in turn until all are published; rank 0 then pairs.

No rank waits at a barrier. A rank that finds nothing free looks again, since the owner of a unit may have died. Ranks
that share split models take part in each other's calls meanwhile: see together.py.
"""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from data_engine import schemas
from data_engine.config import RunConfig
from data_engine.errors import IncompleteError, UserError
from data_engine.job.progress import Progress, log_to_stderr
from data_engine.job.run_file import Checkpoint, describe, kinship_warnings, open_run, place
from data_engine.models import load_model
from data_engine.models.base import pick_device
from data_engine.models.sharding import coordination
from data_engine.pipeline import pair
from data_engine.pipeline.sample import SampleSettings, sample_units
from data_engine.pipeline.score import ScoreSettings, score_unit
from data_engine.processes.exit_report import STOPPED, announce, report_exit
from data_engine.processes.ranks import Ranks, set_device, set_threads
from data_engine.processes.signals import Stop, Stopped
from data_engine.questions.dataset import Question, open_questions
from data_engine.questions.image_workers import ImageWorkers
from data_engine.reporting import page
from data_engine.reporting.timings import Summary
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.memory import peak_bytes, rows_without_pages
from data_engine.sampling.native.scheduler import Decoder
from data_engine.schemas import STAGES
from data_engine.store import claims, disk, logs, units
from data_engine.store.units import UnitResult
from data_engine.store.writer import Writer
from data_engine_kernels import use_triton

log = logging.getLogger(__name__)


def run(config: RunConfig) -> int:
    """Run this rank's part of the job; the exit code of design 4.1, which is also left for the launch script."""
    code, stop, work_dir, reason = 1, Stop(config.grace_s).listen(), Path(config.work_dir), None
    announce()
    try:
        try:
            code = _run(config, Ranks.from_environment(), stop)
        finally:
            stop.disarm()
    except Stopped:
        code = STOPPED
    except OSError as error:
        if not disk.is_trouble(error):
            raise
        code, reason = STOPPED, disk.describe(error, work_dir)
    except UserError:
        code = 2
        raise
    except IncompleteError:
        code = 3
        raise
    finally:
        report_exit(code, work_dir)
    if code == STOPPED:
        by = f"stopped by {stop.wanted or 'a signal to another rank'}; every published unit is kept"
        log.warning("%s", reason or f"{by}: run the same command again to go on")
    return code


def _run(config: RunConfig, ranks: Ranks, stop: Stop) -> int:
    log_to_stderr(ranks)
    set_threads(config.threads, ranks)
    set_device(pick_device(ranks.device(config.device)))
    job = Job(config, ranks, stop)
    with coordination.joined(config, job.placement, ranks, stop) as joined:
        finished = job.work(joined)
    while finished and ranks.rank == 0 and config.stop_after_stage == 2:
        try:
            job.pair()
            break
        except units.DamagedUnitError as damage:
            if config.continue_from_stage == 2 or job.placement.split:
                raise IncompleteError(f"{damage}: run the same command again, with all stages") from None
            log.warning("%s", damage)
            finished = job.work(coordination.Apart())
    if not finished:
        return STOPPED
    if ranks.rank == 0:
        print(f"\n{Summary.read(job.work_dir).table()}", flush=True)
    return 0


class Job:
    """One rank's view of a run: the questions, the units that are its business, and the one model it holds."""

    def __init__(self, config: RunConfig, ranks: Ranks, stop: Stop) -> None:
        self.config, self.ranks, self.stop = config, ranks, stop
        self.work_dir = Path(config.work_dir)
        self.questions = open_questions(config)
        self.checkpoints = {
            "instruct": Checkpoint.find(
                config.instruct_model_path, config.instruct_model_name, config.instruct_model_revision
            ),
            "reward": Checkpoint.find(config.reward_model_path, config.reward_model_name, config.reward_model_revision),
        }
        instruct, reward = self.checkpoints["instruct"], self.checkpoints["reward"]
        self.placement = place(config, instruct, reward, ranks)
        described = describe(config, self.questions, instruct, reward, self.placement)
        self.run_file, warnings = open_run(self.work_dir, described)
        warnings += kinship_warnings(instruct, reward)
        self.unit_rows = units.split_units(len(self.questions), self.run_file["units"]["unit_size"])
        self.mine = range(config.shard_index, len(self.unit_rows), config.num_shards)
        self.same_tokenizer = instruct.vocabulary == reward.vocabulary
        if not self.same_tokenizer:
            warnings.append(
                "instruct and reward model have different tokenizers: answers go over as text, "
                "rewards compare sums and means, and min and last are null"
            )
        if config.temperature == 0:
            warnings.append("temperature 0 gives the same answer k times: no pair can come of it")
        if ranks.rank == 0:
            log.info("%s", self.placement)
            for warning in warnings:
                log.warning(warning)
        self.claims = claims.Claims(self.work_dir, ranks.rank)
        self._together: coordination.Together = coordination.Apart()
        self._model, self._model_role = None, ""
        self._decoder: Decoder | None = None
        self.writer = Writer()
        self.image_workers = ImageWorkers()
        self._checked: set[str] = set()

    def work(self, joined: coordination.Together) -> bool:
        """Publish every unit of this job's shard, up to the last model stage asked for; False if a signal came."""
        first, last = self.config.continue_from_stage, min(self.config.stop_after_stage, 1)
        stages = [stage for stage in STAGES if first <= (stage != "sampled_answer") <= last]
        self._require_earlier(first)
        total = len(self.mine) * len(stages)
        self._together = joined
        with self.image_workers, Progress(self.work_dir, stages, self.mine, total, self.ranks) as progress:
            try:
                # Once, unless a unit of an earlier phase turns out to be damaged.
                while joined.any(self._left(stages)):
                    # It starts while the model is loaded.
                    self.image_workers.start()
                    for phase in joined.phases(stages):
                        if joined.any(bool(self.stop.wanted)):
                            return False
                        self._work_through(phase, progress)
            finally:
                self._written()
        self._require_earlier(first)
        self._model, self._model_role, self._decoder = None, "", None
        return not joined.any(bool(self.stop.wanted))

    def _work_through(self, stages: list[str], progress: Progress) -> None:
        """Publish what is left of some stages, as long as no signal comes."""
        if self._together.any(self._left(stages)) and self._together.split:
            self._load(_role(stages[0]))
        while self._left(stages) and not self.stop.wanted:
            if not self._work_on_one(stages, progress) and not self._written():
                self._together.idle()
        self._written()
        self._together.finish()

    def _written(self) -> bool:
        """Wait until what this rank computed is published; True if there was something to wait for."""
        with self.stop.committing():
            return self.writer.wait()

    def _require_earlier(self, first: int) -> None:
        """A stage starts only where the ones before it, left out on purpose, are complete."""
        for stage in STAGES[: {0: 0, 1: 1, 2: 3}[first]]:
            wanted = range(len(self.unit_rows)) if first == 2 else self.mine
            missing = units.missing(self.work_dir, stage, wanted)
            if missing:
                raise IncompleteError(
                    f"continue_from_stage {first} needs all units of {stage}, missing {len(missing)} of {len(wanted)}: "
                    f"{units.compressed(missing)}; run the earlier stages first"
                )

    def _done(self, stages: list[str]) -> dict[str, set[int]]:
        """The published units of these stages and of the first, whose answers all others need."""
        return {stage: units.published(self.work_dir, stage) for stage in {STAGES[0], *stages}}

    def _left(self, stages: list[str]) -> bool:
        """Whether these stages have a unit of this shard to publish.

        Not one that waits for a sample which is none of their business.
        """
        done = self._done(stages)
        ready = set(self.mine) if STAGES[0] in stages else done[STAGES[0]].intersection(self.mine)
        return any(not done[stage].issuperset(ready) for stage in stages)

    def _work_on_one(self, stages: list[str], progress: Progress) -> bool:
        """Claim and compute the first unit that is free and has what it needs."""
        claimed = self._claim(stages)
        if claimed is None:
            return False
        try:
            self._compute(*claimed, progress)
        except units.DamagedUnitError as damage:
            log.warning("%s", damage)
        return True

    def _claim(self, stages: list[str]) -> tuple[str, int, contextlib.ExitStack] | None:
        """Stage and number of the first unit that is free and has what it needs, and what gives it back."""
        for stage, unit in units.workable(stages, self.mine, self._done(stages)):
            with contextlib.ExitStack() as claim:
                taken = claim.enter_context(self.claims.hold(stage, unit))
                if taken and unit not in units.published(self.work_dir, stage):
                    return stage, unit, claim.pop_all()
        return None

    def _compute(self, stage: str, unit: int, claim: contextlib.ExitStack, progress: Progress) -> None:
        """A claim is given back when its unit is published, which happens while the next one is computed."""
        held = {unit: claim}
        try:
            model = self._load(_role(stage))
            start = time.perf_counter()
            if stage == STAGES[0]:
                results = self._sample(model, held)
            else:
                results = iter([(unit, self._score(model, stage, unit))])
            for number, result in results:
                now = time.perf_counter()
                self._hand_over(stage, number, result, now - start, held, progress)
                start = now
        finally:
            for hold in held.values():
                hold.close()

    def _hand_over(
        self, stage: str, unit: int, result: UnitResult, seconds: float, held: dict, progress: Progress
    ) -> None:
        if result.quarantined and self.config.on_bad_row == "error":
            idx, reason = result.quarantined[0]
            raise UserError(f"row {idx!r} cannot be used: {reason} (on_bad_row is error; skip leaves such rows out)")

        questions, peak = len(self.unit_rows[unit]), peak_bytes(self._model.device)

        def publish() -> None:
            self._publish(stage, unit, result)
            progress.unit_done(stage, unit, result, questions=questions, seconds=seconds, peak_bytes=peak)

        with self.stop.committing():
            self.writer.hand_over(publish, held.pop(unit))

    def _sample(self, model, held: dict[int, contextlib.ExitStack]) -> Iterator[tuple[int, UnitResult]]:
        """The answers of the unit that is held and, with lookahead, of those that are claimed on the way."""
        config = self.config
        params = SamplingParams(
            config.temperature, config.top_k, config.top_p, config.repetition_penalty, config.max_new_tokens
        )
        if self._decoder is None:
            frozen = self.run_file["frozen"]
            # A split model's calls are agreed on one by one, which no captured step can do.
            fused = config.sample_k if use_triton(model.head_weight) and not self._together.split else None
            rows = frozen["decode_rows"] if fused else rows_without_pages(frozen["decode_rows"], model.device.type)
            self._decoder = Decoder(model, rows, frozen["decode_slots"], fused)
        settings = SampleSettings(config.sample_k, config.seed, params, config.same_pixels, config.max_megapixels)
        return sample_units(
            self._decoder, self._held_and_next(held), self.questions.idx_type, settings, self.image_workers.decode
        )

    def _held_and_next(self, held: dict[int, contextlib.ExitStack]) -> Iterator[tuple[int, Iterable[Question]]]:
        """The unit that is held; with lookahead then one more, claimed when it is asked for, as long as any is free.

        Where memory ran out, the unit in hand is the last one: the next one starts anew, with all rows.
        """
        [unit] = held
        yield unit, self.questions.rows(self.unit_rows[unit])
        while self.config.lookahead and not self.stop.wanted and not self._decoder.retries:
            claimed = self._claim([STAGES[0]])
            if claimed is None:
                return
            _, unit, hold = claimed
            held[unit] = hold
            yield unit, self.questions.rows(self.unit_rows[unit])

    def _score(self, model, stage: str, unit: int) -> UnitResult:
        as_text = stage == "reward_logps" and not self.same_tokenizer
        sampled = units.read_unit(self.work_dir, "sampled_answer", unit)
        # The caches of the sampling loop make room.
        self._decoder = None
        settings = ScoreSettings(as_text, self.config.max_megapixels, self.run_file["frozen"]["score_tokens"])
        questions = self.questions.rows(self.unit_rows[unit])
        check = stage not in self._checked
        result = score_unit(model, questions, sampled, settings, check, self.image_workers.decode)
        if result.table.num_rows:
            self._checked.add(stage)
        return result

    def _publish(self, stage: str, unit: int, result: UnitResult) -> None:
        """The rows left out first, so that a published unit never hides one."""
        if result.quarantined:
            rows = [{"idx": idx, "stage": stage, "reason": reason} for idx, reason in result.quarantined]
            table = pa.Table.from_pylist(rows, schemas.quarantine(self.questions.idx_type))
            units.publish(units.quarantine_path(self.work_dir, stage, unit), table)
        units.publish(units.unit_path(self.work_dir, stage, unit), result.table)

    def _load(self, role: str):
        """The model of a role; the other one is let go first."""
        if self._model_role != role:
            self._model, self._decoder, start = None, None, time.perf_counter()
            log.info("loading the %s model from %s", role, self.checkpoints[role].folder)
            self._model = load_model(
                None, str(self.checkpoints[role].folder), device=self.ranks.device(self.config.device),
                dtype=self.config.dtype, split=self._together.split,
            )  # fmt: skip
            self._model_role = role
            logs.note(self.work_dir, self.ranks.rank, f"loading {role}", time.perf_counter() - start)
        return self._model

    def pair(self) -> None:
        """Stage 2, on one rank: pairs, dataset, report, and the funnel on screen."""
        config = self.config
        pair.require_units(self.work_dir, len(self.unit_rows))
        units.sweep(self.work_dir)
        self.claims.sweep()
        log.info("pairing")
        start = time.perf_counter()
        funnel = pair.run(
            self.work_dir, self.questions, self.unit_rows, rank=config.rank, distance=config.distance,
            beta=config.beta, seed=config.seed, markers=tuple(self.run_file["models"]["instruct"]["markers"]),
            same_tokenizer=self.same_tokenizer, debug=config.debug,
        )  # fmt: skip
        logs.note(self.work_dir, self.ranks.rank, "pairing", time.perf_counter() - start)
        page.write_report(self.work_dir, self.questions, funnel, config.max_megapixels)
        print(funnel.table(), flush=True)


def _role(stage: str) -> str:
    """The model that a stage needs."""
    return "reward" if stage == "reward_logps" else "instruct"
