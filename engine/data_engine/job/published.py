"""What a start does with the units that are there: it refuses those of another computation, and sets aside what can be
computed better now. A unit that is set aside counts as missing, and the loop computes it like any other.
"""

import logging
from collections.abc import Iterator

from data_engine import stages
from data_engine.job.plan import Plan
from data_engine.processes.counting import counting
from data_engine.stages import Stage
from data_engine.store import units
from data_engine.store.by_threads import by_threads
from data_engine.store.claims import Claims
from data_engine.store.made_from import exchanged_input, require_bound, too_short

log = logging.getLogger(__name__)


def check(plan: Plan, claims: Claims) -> None:
    """Look at the footer of each published unit of this job's shard.

    Raises UserError for a unit of another computation. Sets aside a unit whose inputs were exchanged, and, where its
    stage is among those to be computed, one that a smaller --limit cut short, and one with a row that was missing and
    can be read now.
    """
    config = plan.config
    todo = {stage.name for stage in plan.stages.between(config.continue_from_stage, config.stop_after_stage)}
    # Of each stage: the seal of each published unit; another one, that no unit has, for those that were set aside here.
    seals: dict[str, dict[int, str]] = {}
    for stage in plan.stages.by_name.values():
        seals[stage.name] = {}
        for unit, facts, seal in _facts(plan, stage):
            require_bound(facts, stage, plan.bound, units.unit_path(plan.work_dir, stage.name, unit))
            inputs = {name: seals[name][unit] for name in stage.needs if unit in seals[name]}
            reason = None
            if exchanged_input(facts, inputs):
                # Another rank may have computed both again since the input was read.
                inputs |= {name: now for name in inputs if (now := _seal(plan, name, unit))}
            if stage.step == stages.SAMPLE and stage.name in todo:
                reason = too_short(facts, len(plan.unit_rows[unit]))
            if exchanged := exchanged_input(facts, inputs):
                reason = f"its unit of {exchanged} is another one now"
            elif stage.name in todo and not reason:
                reason = _why_again(plan, stage, unit, {idx for idx, _ in facts["missing"]})
            if reason:
                _set_aside(plan, claims, stage, unit, (seal, reason))
            seals[stage.name][unit] = "set aside" if reason else seal


def _facts(plan: Plan, stage: Stage) -> Iterator[tuple[int, dict, str]]:
    """Number, facts and seal of each published unit of this job's shard; rank 0 counts them on stderr."""

    def read(unit: int) -> tuple[dict, str] | units.DamagedUnitError:
        try:
            return units.read_unit_facts(plan.work_dir, stage.name, unit)
        except units.DamagedUnitError as damage:
            return damage

    there = sorted(units.published(plan.work_dir, stage.name) & set(plan.mine))
    found = zip(there, by_threads(read, there), strict=True)
    if plan.ranks.rank == 0:
        found = counting(found, len(there), f"units of {stage.name} looked at")
    for unit, read_of in found:
        if isinstance(read_of, units.DamagedUnitError):
            log.warning("%s", read_of)
        else:
            yield unit, *read_of


def _why_again(plan: Plan, stage: Stage, unit: int, missing: set) -> str | None:
    """Why a unit with these missing rows is to be computed again, or None where they are missing still.

    A stage that looks at no picture lacks a row for what the machine did alone.
    """
    sees_pictures = bool({*stage.settings} & {*stages.PICTURES})
    for row in plan.unit_rows[unit] if missing else ():
        idx = plan.questions.idx[row]
        if idx in missing and not sees_pictures:
            return f"row {idx!r} failed then for what the machine did"
        if idx in missing:
            [question] = plan.questions.rows(range(row, row + 1))
            if not question.missing:
                return f"row {idx!r} could not be read then, and can be read now"
    return None


def _set_aside(plan: Plan, claims: Claims, stage: Stage, unit: int, found: tuple[str, str]) -> None:
    seal, reason = found
    with claims.hold(stage.name, unit) as mine:
        # Another rank may be at it, or may have computed it again since.
        if mine and _seal(plan, stage.name, unit) == seal:
            aside = units.set_aside(plan.work_dir, stage.name, unit, units.REPLACED, units.has_seal(seal))
            if aside is not None:
                log.warning(
                    "unit %d of %s will be computed again: %s; the old one is in %s", unit, stage.name, reason, aside
                )


def _seal(plan: Plan, stage: str, unit: int) -> str | None:
    """That of a published unit, as it is now; None where there is none."""
    try:
        return units.read_unit_facts(plan.work_dir, stage, unit)[1]
    except units.DamagedUnitError:
        return None
