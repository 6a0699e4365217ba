"""The plan of a start: the configuration, resolved once. What is below takes the plan, or a part of it.

Questions, checkpoints, device, placement, budgets, units and stages; run.json is created or compared here.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_engine import exports, stages
from data_engine.config import RunConfig
from data_engine.config_checks import ZERO3_AND_VLLM, without_pairs
from data_engine.errors import UserError
from data_engine.job import budgets, by_vllm, limit, run_file
from data_engine.job.checkpoints import Checkpoint, have_same_tokenizer, kinship_warnings, why_sums_alone
from data_engine.job.given import Given
from data_engine.models import family_class
from data_engine.models.check import check_models
from data_engine.models.device import Target, pick_device, pick_dtype
from data_engine.models.sharding import placement, settings
from data_engine.pipeline.pair_settings import Settings
from data_engine.pipeline.runner import UnitWork
from data_engine.processes.ranks import Ranks, num_threads, set_device
from data_engine.questions.dataset import Questions, require_same
from data_engine.questions.given_rows import GivenFile
from data_engine.questions.of_run import open_for_run
from data_engine.stages import RunStages, Stage
from data_engine.store import units
from data_engine.store.claims import Claims
from data_engine.store.file_hashes import FileHashes
from data_engine.store.made_from import read_unit, require_questions
from data_engine.vllm_settings import gpus_of_an_engine

NO_IMAGES = (
    'the dataset has no column "image" or "images": every question is asked without an image (a column of another name '
    "is named by --columns image=NAME)"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What this rank works by, for the whole of a start."""

    config: RunConfig
    ranks: Ranks
    work_dir: Path
    target: Target
    """this rank's device, and the models' dtype"""
    questions: Questions
    checkpoints: dict[str, Checkpoint]
    """by role"""
    placement: placement.Decision
    budgets: dict[str, int]
    """decode_rows, decode_slots and score_tokens, as the first start of the run wrote them down"""
    bound: dict[str, object]
    """what units are bound to, by name: see run_file.py"""
    unit_rows: list[range]
    """the rows of each unit"""
    mine: range
    """numbers of the units of this job's shard"""
    stages: RunStages
    given: Given | None
    """the answers of --answers"""

    @classmethod
    def of(cls, config: RunConfig, ranks: Ranks) -> "Plan":
        """Resolve a configuration, and create run.json or hold it against the one that is there.

        The rank's GPU becomes the current device. Raises UserError naming what is wrong. Rank 0 logs the placement and
        what a person should know.
        """
        if config.draws_by_vllm:
            ranks = ranks.with_gpus(gpus_of_an_engine(config.vllm_options))
        # Pairs are made without a GPU, whatever device computed the units.
        device = pick_device("cpu" if config.continue_from_stage == stages.PAIR else ranks.device(config.device))
        set_device(device, config.memory_fraction)
        target, work_dir = Target(device, pick_dtype(config.dtype, device)), Path(config.work_dir)
        run_stages, formats = config.stages, exports.chosen(config.export)
        # Names of strategies and rewards, which the last step reads hours later.
        Settings.of(config, run_stages)
        questions = _questions(config)
        check_models(config, config.roles)
        checkpoints = {role: Checkpoint.of_role(config, role) for role in config.roles}
        trained = checkpoints.get(stages.TRAINED)
        exports.require_possible(formats, trained and trained.family, run_stages.by_name)
        sampler = {}
        if config.draws_by_vllm:
            sampler = {"sampler": by_vllm.check(config, trained, device.type)}
        decision = _placement(config, checkpoints, ranks, target)
        bound = _bound(config, len(questions), target)
        # Before minutes of hashing.
        run_file.require_same(work_dir, bound, run_stages)
        limit.require_reach(work_dir, bound["unit_size"], len(questions))
        claims = Claims(run_file.make_work_dir(work_dir), ranks.rank)
        hashes = FileHashes(work_dir, claims)
        bound |= run_file.content(hashes, questions, config.answers, checkpoints)
        given = None
        if config.answers is not None:
            # Before the file is read whole.
            run_file.require_same(work_dir, bound, run_stages)
            given = Given.of(config, questions, checkpoints, hashes, claims)
            bound["answers_vocabulary"] = trained.vocabulary if given.facts.has_ids else None
        # On a GPU one queue goes through all units. Whatever --limit leaves of them: it may grow.
        at_once = questions.num_rows if device.type == "cuda" else bound["unit_size"]
        described = run_file.describe(
            config, questions, bound,
            frozen=budgets.frozen_budgets(config, checkpoints, target, decision, at_once), zero3=decision.as_json(),
            models={role: checkpoint.as_json() for role, checkpoint in checkpoints.items()},
            **_compared(run_stages, checkpoints, given), **sampler, **_threads(config, ranks, device.type),
        )  # fmt: skip
        found, warnings = run_file.open_run(work_dir, described)
        unit_rows = units.split_units(len(questions), bound["unit_size"])
        plan = cls(
            config, ranks, work_dir, target, questions, checkpoints, decision, found["frozen"], bound, unit_rows,
            range(config.shard_index, len(unit_rows), config.num_shards), run_stages, given,
        )  # fmt: skip
        if ranks.rank == 0:
            plan._tell(warnings)
        return plan

    def _tell(self, warnings: list[str]) -> None:
        if self.checkpoints:
            log.info("%s", self.placement)
        log.info("%s", budgets.told(self.budgets) if self.given is None else self.given.facts.told())
        for warning in (*warnings, *self.warnings()):
            log.warning(warning)

    @property
    def trained(self) -> Checkpoint | None:
        """The model that samples the answers, or is to learn from those that are given; None where none is named."""
        return self.checkpoints.get(stages.TRAINED)

    def answers_as_text(self, stage: Stage) -> bool:
        """Whether a stage's model has another tokenizer than the model that sampled."""
        return stage.model is not None and not self._shares_ids(self.checkpoints[stage.model])

    def _shares_ids(self, checkpoint: Checkpoint) -> bool:
        return self.trained is not None and checkpoint.vocabulary == self.trained.vocabulary

    def unit_work(self, stage: Stage, unit: int) -> UnitWork:
        """A unit of a stage, with the published units that it needs; its questions are read as they are asked for.

        Raises DamagedUnitError and UserError as made_from.read_unit does, and UserError while the questions are read,
        for one that is not as its answers were sampled from.
        """
        known = self.stages.by_name
        inputs = {name: read_unit(self.work_dir, known[name], unit, self.bound) for name in stage.needs}
        questions = self.questions.rows(self.unit_rows[unit])
        for needed in inputs.values():
            require_questions(self.work_dir, unit, needed, len(self.unit_rows[unit]))
            questions = require_same(questions, needed.facts["rows"])
        return UnitWork(unit, questions, inputs)

    @property
    def figures(self) -> dict[str, int]:
        """The budgets, and how many questions the run asks: run.json has them while units are published."""
        return self.budgets | {"num_questions": len(self.questions)}

    @property
    def same_tokenizer(self) -> bool:
        """Whether the models whose log-probs are compared score the same token ids of an answer."""
        return have_same_tokenizer(self.checkpoints, _has_texts(self.given))

    def warnings(self) -> list[str]:
        """What a person should know before the work begins."""
        found, both = [], self.stages.compared
        if self.checkpoints.keys() >= set(both):
            contents = {self.bound[stages.model_key(role)] for role in both}
            models = map(self.checkpoints.get, both)
            found = kinship_warnings(*models, role=both[0], same_files=len(contents) == 1)
            if told := why_sums_alone(self.checkpoints, both, _has_texts(self.given)):
                found.append(told)
        if taken := placement.taken_by_others(self.target.device, self.placement.memory_bytes):
            found.append(taken)
        found += self.questions.warnings
        if not self.questions.has_images:
            found.append(NO_IMAGES)
        computes = self.config.continue_from_stage < stages.PAIR
        shard = (self.config.num_shards, self.config.shard_index)
        if computes and (empty := units.told_of_empty_shards(len(self.unit_rows), *shard)):
            found.append(empty)
        if self.config.sampler == "vllm":
            found += by_vllm.warnings(self.config, self.stages, self.target.device.type)
        if self.given is not None:
            found += self.given.facts.warnings(self.config)
        return found + without_pairs(self.config)


def _bound(config: RunConfig, num_questions: int, target: Target) -> dict:
    """The bound values that are no content. A start that makes pairs alone takes device and dtype of the units from
    run.json, where no flag names them.
    """
    if config.continue_from_stage < stages.PAIR:
        return run_file.bound_settings(config, num_questions, target)
    there = (run_file.read(Path(config.work_dir)) or {"bound": {}})["bound"]
    chosen = {"device": target.device.type, "dtype": target.dtype_name}
    chosen |= {name: there[name] for name in chosen if name in there}
    return chosen | run_file.bound_settings(config, num_questions, None)


def _threads(config: RunConfig, ranks: Ranks, device_type: str) -> dict[str, int]:
    """Threads a rank, on which the last digits of what a CPU computes depend; nothing where no model runs on one."""
    todo = config.stages.between(config.continue_from_stage, config.stop_after_stage)
    computes = device_type == "cpu" and any(stage.model for stage in todo)
    return {"threads": num_threads(config.threads, ranks)} if computes else {}


def _compared(run_stages: RunStages, checkpoints: Mapping[str, Checkpoint], given: Given | None) -> dict[str, bool]:
    """What run.json says of the models whose log-probs are compared; nothing by a start that does not have them all."""
    if not checkpoints.keys() >= set(run_stages.compared):
        return {}
    return {"same_tokenizer": have_same_tokenizer(checkpoints, _has_texts(given))}


def _has_texts(given: Given | None) -> bool:
    """Whether answers come as text, which each model encodes by its own template."""
    return given is not None and given.facts.text_alone > 0


def _questions(config: RunConfig) -> Questions:
    """The dataset, checked against what the sources of reward and the file of answers need of it."""
    questions = open_for_run(config)
    if config.answers is not None:
        # Of its rows nothing yet.
        GivenFile(config.answers, questions.idx_type)
    return questions


def _placement(
    config: RunConfig, checkpoints: Mapping[str, Checkpoint], ranks: Ranks, target: Target
) -> placement.Decision:
    """Whether models are split over the ranks. Raises UserError for one that would have to be and cannot.

    A file of settings that is named has to be one, also where this start splits nothing: the next one may.
    """
    settings.read_settings(config.zero3_config)
    weights = budgets.largest_bytes(checkpoints, target.dtype)
    decision = placement.decide(config.zero3, weights, ranks, target.device, config.memory_fraction)
    if decision.split and config.draws_by_vllm:
        if config.stop_after_stage > stages.SAMPLE:
            raise UserError(ZERO3_AND_VLLM.format(told=decision))
        # No model of ours is loaded by such a start.
        return replace(decision, split=False)
    if decision.split:
        for checkpoint in checkpoints.values():
            family_class(checkpoint.family).check_split(checkpoint.folder)
    return decision
