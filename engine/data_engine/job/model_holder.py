"""The one model that a rank holds at a time, and the runner of the stage that it works on."""

import contextlib
import functools
import gc
import logging
import time
from collections.abc import Iterable

import torch

from data_engine.job.path_choice import choose
from data_engine.job.plan import Plan
from data_engine.models import class_for, load_model
from data_engine.models.memory_errors import naming_no_room
from data_engine.models.prompt_maker import PromptMaker
from data_engine.models.roles import naming_flag
from data_engine.models.sharding.coordination import Coordination
from data_engine.pipeline.runner import StageContext, StageRunner
from data_engine.questions.image_workers import ImageWorkers
from data_engine.questions.images import Decode
from data_engine.stages import HEADED, Stage
from data_engine.store import logs
from data_engine.tables import load

log = logging.getLogger(__name__)


class ModelHolder:
    """A model is loaded when a stage needs it, and lets go of the one before.

    `plan` may be replaced by one with other units of the same dataset; `role` is that of the model that is held.
    """

    def __init__(self, plan: Plan, image_workers: ImageWorkers) -> None:
        self.plan, self._image_workers = plan, image_workers
        self.role: str | None = None
        self._model, self._made_of = None, None
        self._runner, self._stage = None, None

    @functools.cached_property
    def _decode(self) -> Decode:
        return functools.partial(self._image_workers.decode, exif=self.plan.config.exif)

    def load(self, role: str | None, coordination: Coordination):
        """The model of a role; the one before is let go first, unless it is the same, by its folder and how it is read.

        A stage without a model gets None, and frees nothing.
        """
        if role is None:
            return None
        if self.role == role:
            return self._model
        plan, start = self.plan, time.perf_counter()
        made_of = checkpoint, options = self._to_load(role)
        # The calls of a split model belong to the stages of one role.
        if coordination.split is None and made_of == self._made_of:
            log.info("the %s model is the %s model, which is loaded", role, self.role)
            self.drop_runner()
        else:
            self.release()
            log.info("loading the %s model from %s", role, plan.checkpoints[role].told)
            # What is there already outlives the model: letting go of it need not look through all that was imported.
            gc.freeze()
            mend = (
                f"{plan.placement}. End what else holds memory there, take a smaller model or a larger device, or "
                "split the model over several ranks (--zero3 on)"
            )
            # Not of a split model: other ranks wait in its calls.
            naming = contextlib.nullcontext() if plan.placement.split else naming_no_room(mend)
            with naming_flag(plan.config, role), naming:
                self._model = load_model(*checkpoint, **options, split=coordination.split)
        choose(plan, role, self._model, self._decode)
        self.role, self._made_of = role, made_of
        logs.note(plan.work_dir, plan.ranks.rank, f"loading {role}", time.perf_counter() - start)
        return self._model

    def ordered(self, stages: Iterable[Stage]) -> list[Stage]:
        """The same stages, those that run the same model behind one another; models in the order of their first stages.

        Then a model that stands in several roles, as one that judges its own answers, is loaded once.
        """
        groups: list[tuple[object, list[Stage]]] = []
        for stage in stages:
            needed = None if stage.model is None or stage.elsewhere else self._to_load(stage.model)
            group = next((group for known, group in groups if known == needed), None)
            if group is None:
                groups.append((needed, group := []))
            group.append(stage)
        return [stage for _, group in groups for stage in group]

    def _to_load(self, role: str) -> tuple[tuple[str | None, str], dict[str, object]]:
        """What load_model is told of the model of a role: name and path, and options."""
        checkpoint, chat, target = self.plan.checkpoints[role], self.plan.config.chat_of(role), self.plan.target
        return (checkpoint.name, str(checkpoint.folder)), {
            "device": str(target.device), "dtype": target.dtype_name, "chat_template": chat.template,
            "chat_template_kwargs": chat.kwargs, "headed": role in HEADED, "compiled": self.plan.config.compile_layers,
        }  # fmt: skip

    def runner(self, stage: Stage, coordination: Coordination) -> StageRunner:
        """The runner of a stage, with its model; that of another stage goes, and what it holds on the device."""
        if self._stage != stage:
            self.drop_runner()
            model = self._prompt_maker(stage) if stage.elsewhere else self.load(stage.model, coordination)
            plan = self.plan
            context = StageContext(
                model, plan.config, plan.budgets, plan.questions.idx_type, plan.answers_as_text(stage),
                split=coordination.split is not None,
                decode=self._decode, target=plan.target, scores_own=stage.model == plan.stages.sampling.model,
                given=None if plan.given is None else plan.given.of_units(plan.unit_rows),
                records=lambda unit: plan.questions.records(plan.unit_rows[unit]), column=plan.questions.column,
            )  # fmt: skip
            self._runner, self._stage = load(stage.runner)(context), stage
        return self._runner

    def _prompt_maker(self, stage: Stage) -> PromptMaker:
        """What makes the prompts of a model that another engine runs; the one that is held here is let go."""
        self.release()
        checkpoint, chat = self.plan.checkpoints[stage.model], self.plan.config.chat_of(stage.model)
        return class_for(checkpoint.family, chat).prompt_maker(checkpoint.folder, chat)

    def drop_runner(self) -> None:
        """Close the runner, with the units that it has not finished."""
        if self._runner is not None:
            self._runner.close()
        self._runner, self._stage = None, None

    def release(self) -> None:
        """Let go of model and runner, and of their memory."""
        self.drop_runner()
        held, self._model, self.role, self._made_of = self._model is not None, None, None, None
        # Hooks and compiled layers name the modules that hold them, so these are not freed by their counts alone.
        if held:
            gc.collect()
            # torch keeps freed memory of a GPU for itself, and another engine runs in processes of its own.
            torch.cuda.empty_cache()
        gc.unfreeze()
