"""What a unit says that it was computed from: the bound values that shaped it, and the seals of the units that it read.

A unit of other values is refused by name. A unit whose input was exchanged is computed again.
"""

from collections.abc import Mapping
from pathlib import Path

from data_engine import stages
from data_engine.errors import UserError
from data_engine.flag_files import HASH_LENGTH, told_of_hashes
from data_engine.stages import Stage
from data_engine.store import units
from data_engine.store.sealed import Sealed


def made_from(stage: Stage, bound: Mapping, inputs: Mapping[str, Sealed]) -> dict:
    """What a unit of a stage says; `inputs` are the units that it read, by stage."""
    return {
        "bound": {name: bound.get(name) for name in stage.bound},
        "seals": {name: unit.seal for name, unit in inputs.items()},
    }


def read_unit(work_dir: Path, stage: Stage, unit: int, bound: Mapping) -> Sealed:
    """A published unit. Raises DamagedUnitError as units.read_unit does, UserError for one of another computation."""
    found = units.read_unit(work_dir, stage.name, unit)
    require_bound(found.facts, stage, bound, units.unit_path(work_dir, stage.name, unit))
    return found


def read_with_inputs(work_dir: Path, stage: Stage, unit: int, bound: Mapping, inputs: Mapping[str, Sealed]) -> Sealed:
    """A published unit that was computed from these `inputs`; one that was not is set aside, as a damaged one is.

    Raises DamagedUnitError then, and where an input is another one by now than that which was read.
    """
    found = read_unit(work_dir, stage, unit, bound)
    exchanged = exchanged_input(found.facts, {name: one.seal for name, one in inputs.items()})
    if exchanged:
        path, aside = units.unit_path(work_dir, stage.name, unit), None
        # Another start may have computed both again since the input was read.
        if units.read_unit_facts(work_dir, exchanged, unit)[1] == inputs[exchanged].seal:
            aside = units.set_aside(work_dir, stage.name, unit, units.REPLACED, units.has_seal(found.seal))
        told = f"it was moved to {aside} and will be computed again" if aside else "one of them was exchanged meanwhile"
        raise units.DamagedUnitError(f"{path} was computed from another unit of {exchanged}; {told}")
    return found


def too_short(facts: Mapping, num_questions: int) -> str | None:
    """Why a unit of answers that had fewer questions is none of this run: the last one of a smaller --limit, which may
    have grown. None for all others.
    """
    had = len(facts["rows"])
    return f"a smaller --limit left it {had} of its {num_questions} questions" if had < num_questions else None


def require_questions(work_dir: Path, unit: int, sampled: Sealed, num_questions: int) -> None:
    """Raise DamagedUnitError for a unit of answers that is too_short; it is set aside, as a damaged one is."""
    if why := too_short(sampled.facts, num_questions):
        name = stages.SAMPLING.name
        aside = units.set_aside(work_dir, name, unit, units.REPLACED, units.has_seal(sampled.seal))
        told = f"was moved to {aside} and will be computed again" if aside else "was exchanged meanwhile"
        raise units.DamagedUnitError(f"{units.unit_path(work_dir, name, unit)} {told}: {why}")


def require_bound(facts: Mapping, stage: Stage, bound: Mapping, where: object) -> None:
    """Raise UserError where a published unit was computed from other values than `bound`."""
    theirs = facts.get("made_from", {}).get("bound", {})
    differing = differing_names(theirs, {name: bound.get(name) for name in stage.bound})
    if differing:
        raise UserError(
            f"{where} belongs to another run: {told(differing, theirs, bound)}. Go on with its settings, remove the "
            f"folder {stage.name} so that it is computed again, or choose another work_dir"
        )


def exchanged_input(facts: Mapping, seals: Mapping[str, str]) -> str | None:
    """The stage whose unit has another seal by now than the one that was read; None where all are the same.

    An input that is missing may come back the same, byte for byte: `seals` does not have it.
    """
    read = facts.get("made_from", {}).get("seals", {})
    return next((name for name, seal in seals.items() if read.get(name) != seal), None)


def differing_names(theirs: Mapping, ours: Mapping) -> list[str]:
    """The names of `ours` whose value differs."""
    return [name for name, value in ours.items() if theirs.get(name) != value]


def told(names: list[str], then: Mapping, now: Mapping) -> str:
    """Values that differ, for a person to read."""
    models = (stages.model_key(stage.model) for stage in stages.known().values() if stage.model)
    contents = {
        "dataset", "chat_template", "yesno_template", "critic_template", "answers", "answers_vocabulary", *models,
    }  # fmt: skip

    def shown(name: str, value: object) -> str:
        if name == "sampler":
            return value or "native"
        if value is None:
            return "not set"
        if isinstance(value, Mapping):
            return told_of_hashes(value)
        return str(value)[:HASH_LENGTH] if name in contents else repr(value)

    return "; ".join(f"{name} was {shown(name, then.get(name))}, now {shown(name, now.get(name))}" for name in names)
