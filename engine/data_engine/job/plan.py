"""The plan of a start: the configuration, resolved once. What is below takes the plan, or a part of it.

Questions, checkpoints, device, placement, budgets, units and stages; run.json is created or compared here.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from data_engine import stages
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import run_file
from data_engine.job.checkpoints import Checkpoint, kinship_warnings
from data_engine.models.base import Target, pick_device, pick_dtype
from data_engine.models.check import check_models
from data_engine.models.sharding import placement
from data_engine.processes.ranks import Ranks, set_device
from data_engine.questions.dataset import Questions, open_questions
from data_engine.stages import Stage
from data_engine.store import units

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
    unit_rows: list[range]
    """the rows of each unit"""
    mine: range
    """numbers of the units of this job's shard"""

    @classmethod
    def of(cls, config: RunConfig, ranks: Ranks) -> "Plan":
        """Resolve a configuration, and create run.json or hold it against the one that is there.

        The rank's GPU becomes the current device. Raises UserError naming what is wrong. Rank 0 logs the placement and
        what a person should know.
        """
        device = pick_device(ranks.device(config.device))
        set_device(device)
        target = Target(device, pick_dtype(config.dtype, device))
        questions = open_questions(config)
        _check_columns(questions)
        check_models(config, stages.roles())
        checkpoints = {role: Checkpoint.of_role(config, role) for role in stages.roles()}
        weights = run_file.largest_bytes(checkpoints, target.dtype)
        decision = placement.decide(config.zero3, weights, ranks, device)
        described = run_file.describe(config, questions, checkpoints, target, decision)
        found, warnings = run_file.open_run(Path(config.work_dir), described)
        unit_rows = units.split_units(len(questions), found["units"]["unit_size"])
        plan = cls(
            config, ranks, Path(config.work_dir), target, questions, checkpoints, decision, found["frozen"], unit_rows,
            range(config.shard_index, len(unit_rows), config.num_shards),
        )  # fmt: skip
        if ranks.rank == 0:
            log.info("%s", decision)
            for warning in (*warnings, *plan.warnings()):
                log.warning(warning)
        return plan

    @property
    def sampler(self) -> Checkpoint:
        """The model that samples the answers."""
        return self.checkpoints[stages.SAMPLING.model]

    def answers_as_text(self, stage: Stage) -> bool:
        """Whether a stage's model has another tokenizer than the model that sampled."""
        return stage.model is not None and self.checkpoints[stage.model].vocabulary != self.sampler.vocabulary

    @property
    def same_tokenizer(self) -> bool:
        """Whether all models of the run read the sampled token ids as they are."""
        return not any(self.answers_as_text(stage) for stage in stages.chosen().values())

    def warnings(self) -> list[str]:
        """What a person should know before the work begins."""
        both = [self.checkpoints[role] for role in ("instruct", "reward") if role in self.checkpoints]
        found = kinship_warnings(*both) if len(both) == 2 else []
        if not self.same_tokenizer:
            found.append(
                "instruct and reward model have different tokenizers: answers go over as text, "
                "rewards compare sums and means, and min and last are null"
            )
        if self.config.temperature == 0:
            found.append("temperature 0 gives the same answer k times: no pair can come of it")
        return found


def _check_columns(questions: Questions) -> None:
    for stage in stages.chosen().values():
        missing = [column for column in stage.columns if column not in questions.columns]
        if missing:
            raise UserError(
                f'{stage.name} needs the column "{missing[0]}", and the dataset has none; '
                f"columns: {', '.join(questions.columns)}"
            )
