"""A pairing: its file and flags, and run.json as it was for it, which another start may have opened since. No torch."""

from collections.abc import Mapping
from pathlib import Path

from data_engine import stages
from data_engine.flag_files import names_in
from data_engine.stages import RunStages

# The name of the pairing that a run makes, of which dataset/ is written.
OWN = "pairs"
FOLDER = "pairs"
# Flags that a pairing depends on, besides the answers and what was computed of them: the fields of
# pipeline/pair_settings.py.
FLAGS = (
    "rank_by", "strategy", "rank", "distance", "right", "min_margin", "max_margin", "max_pairs", "length_alpha",
    "length_balance", "beta", "near_duplicates", "seed",
)  # fmt: skip


def pairs_file(work_dir: Path, name: str = OWN) -> Path:
    """Where the pairs of a pairing are."""
    return work_dir / FOLDER / f"{name}.parquet"


def of_pairing(run_file: Mapping, told: Mapping) -> dict:
    """run.json with what a pairing was made by: its sources of reward, their models, whether those of `implicit` share
    a tokenizer, and the number of its questions.

    run.json itself has those of the start that opened the run last, which may be at work still. `told` is what
    read_metadata gives of the pairing.
    """
    config = run_file.get("config", {}) | {"rewards": told["rewards"]}
    config |= _optional_flags(run_file, told) | _needed_flags(config, told) | _aspect_flags(config, told)
    roles = {stages.TRAINED, *RunStages.of(config).roles}
    models = {role: model for role, model in run_file.get("models", {}).items() if role in roles}
    same = {"same_tokenizer": told["same_tokenizer"]} if "implicit" in stages.chosen(told["rewards"]) else {}
    return {**run_file, "config": config | _limit(run_file, told), "models": models, **same}


def _limit(run_file: Mapping, told: Mapping) -> dict[str, int]:
    """--limit of the pairing, where a later start has another one."""
    asked = told.get("funnel", {}).get("questions")
    there = run_file.get("units", {}).get("num_questions")
    return {} if None in (asked, there) or asked == there else {"limit": asked}


def _needed_flags(config: Mapping, told: Mapping) -> dict[str, str]:
    """Flags besides models without which the sources of a pairing are refused, where the last start has none: what the
    pairing says of their files, which nobody reads again.
    """
    needed = (name for source in stages.chosen(told["rewards"]) for name in stages.SOURCES[source].given)
    return {name: str(told.get("bound", {}).get(name, "")) for name in needed if config.get(name) is None}


def _aspect_flags(config: Mapping, told: Mapping) -> dict[str, str | None]:
    """Flags that name aspects, where the last start named others: those of the pairing, with the hashes of their files
    in the place of paths.
    """
    flags = {}
    for source in map(stages.SOURCES.get, stages.chosen(told["rewards"])):
        name, bound = source.aspects, told.get("bound", {}).get(source.aspects)
        hashes = bound if isinstance(bound, Mapping) else {}
        if bound is not None and {*hashes} != {*names_in(config.get(name))}:
            listed = ",".join(f"{aspect}={value}" for aspect, value in hashes.items())
            flags[name] = listed or (str(bound) if name in source.given else None)
    return flags


def _optional_flags(run_file: Mapping, told: Mapping) -> dict[str, str | None]:
    """Flags of models that the sources of a pairing may do without, where the last start had another choice."""
    config, flags = run_file.get("config", {}), {}
    # What a pairing was made of is not told by one of before.
    for role in stages.optional_roles(stages.chosen(told["rewards"])) if "bound" in told else ():
        path, *others = stages.model_flags(role)
        if stages.model_key(role) not in told["bound"]:
            flags |= dict.fromkeys((path, *others))
        elif config.get(path) is None:
            model = run_file.get("models", {}).get(role, {})
            flags[path] = model.get("adapter") or next(iter(model.get("folders", ())), "")
    return flags
