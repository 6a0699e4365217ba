"""Where the files of a round lie, and the flags of its run."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from data_engine.config import RunConfig
from data_engine.errors import UserError, first_line
from data_engine.flags import PATHS
from data_engine.models.checkpoints.adapter_folder import is_adapter
from data_engine.stages import TRAINED, model_flags
from data_engine.store.absent import is_file, matching
from data_engine.store.atomic import replacing

# In values of flags: the model that a round samples from, and its number.
MODEL, ROUND = "{model}", "{round}"
# What a round does not depend on: how a start is run, and what else it writes.
FREE = (
    "work_dir", "threads", "memory_fraction", "grace_s", "debug", "export", "device", "zero3", "zero3_config",
    "require_fast", "on_bad_row", "vllm_args",
)  # fmt: skip


@dataclass(frozen=True)
class Round:
    """One round, from 1 on, of the loop in a folder."""

    loop: Path
    number: int

    @property
    def folder(self) -> Path:
        return self.loop / f"round-{self.number}"

    @property
    def run(self) -> Path:
        """The work_dir of its answers and pairs."""
        return self.folder / "run"

    @property
    def model(self) -> Path:
        """What its trainer writes."""
        return self.folder / "model"

    @property
    def config(self) -> Path:
        """The flags of its run, as --config takes them."""
        return self.folder / "config.yaml"

    @property
    def log(self) -> Path:
        """What its trainer says."""
        return self.folder / "train.log"

    @property
    def trained(self) -> Path:
        """It is there when the round is done."""
        return self.folder / "trained.json"

    @property
    def is_done(self) -> bool:
        return is_file(self.trained)

    def note_training(self, facts: Mapping) -> None:
        """Note that the round is done, with what `training` reads."""
        with replacing(self.trained) as path:
            path.write_text(json.dumps({"round": self.number, **facts}, indent=1), encoding="utf-8")

    def training(self) -> Mapping:
        """What is noted of the training of a round that is done. Raises UserError where the file is damaged."""
        try:
            found = json.loads(self.trained.read_text(encoding="utf-8"))
            return {"train": str(found["train"]), "seconds": float(found["seconds"])}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f'"{self.trained}" is not what a loop wrote ({first_line(error)}): remove it, and the round is trained '
                "again"
            ) from None


def rounds_of(loop: Path) -> list[Round]:
    """The rounds that have a folder, in order."""
    numbers = [path.name.removeprefix("round-") for path in matching(loop, "round-*")]
    return [Round(loop, number) for number in sorted(int(text) for text in numbers if text.isdecimal())]


def config_of(loop: RunConfig, one: Round) -> RunConfig:
    """The configuration of a round's run, from that of the loop, whose work_dir is the loop's folder.

    From the second round on, the model is what the round before trained: its family is what its config.json says, and
    it has no revision.
    """
    values = asdict(loop)
    *first, base = (values[flag] for flag in model_flags(TRAINED))
    model = (*first, _base_of(first[0], base))
    if one.number > 1:
        path = str(Round(one.loop, one.number - 1).model)
        model = (path, None, None, _base_of(path, base))
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = value.replace(ROUND, str(one.number)).replace(MODEL, model[0])
    for role in loop.roles:
        if role == TRAINED or getattr(loop, f"{role}_model_path") == MODEL:
            values |= dict(zip(model_flags(role), model, strict=True))
    # Names of folders are what they are, braces and all.
    return RunConfig(**values | {"work_dir": str(one.run)})


def _base_of(path: str, base: str | None) -> str | None:
    """The base of the loop's flags where that model may be an adapter: those of other rounds may be it alone."""
    is_whole = is_file(Path(path) / "config.json") and not is_adapter(Path(path))
    return None if is_whole else base


def given(config: RunConfig) -> dict[str, object]:
    """The fields that differ from their defaults."""
    return {one.name: value for one in fields(config) if (value := getattr(config, one.name)) != one.default}


def write_config(config: RunConfig, one: Round) -> None:
    """The flags of a round as a file, by which `data-engine run` does the same."""
    one.folder.mkdir(parents=True, exist_ok=True)
    with replacing(one.config) as path:
        path.write_text(yaml.safe_dump(given(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def require_same(config: RunConfig, one: Round) -> None:
    """Raise UserError where a round that is done was made with other flags."""
    try:
        then = _without_places(yaml.safe_load(one.config.read_text(encoding="utf-8")), one)
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f'"{one.config}" has no flags ({first_line(error)}), and round {one.number} is done: give the file back, '
            "or choose another work_dir"
        ) from None
    now = _without_places(given(config), one)
    differing = [
        name for name in {**then, **now} if name not in FREE and not _same(name, then.get(name), now.get(name))
    ]
    if differing:
        told = "; ".join(f"{name} was {_told(then, name)}, now {_told(now, name)}" for name in differing)
        raise UserError(
            f'round {one.number} of "{one.loop}" is done, with other flags: {told}. Give those of its start, or '
            "another work_dir"
        )


def _same(name: str, one: object, other: object) -> bool:
    """Whether a flag has the same value twice, or is two paths of one place: what is there, the round's run binds."""
    if one == other or not (isinstance(one, str) and isinstance(other, str) and name in PATHS):
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)


def _without_places(values: Mapping[str, object], one: Round) -> dict[str, object]:
    """Flags of a round as they are wherever the folder of the loop lies: it may be moved, or named by another path."""
    model = values["instruct_model_path"] if one.number > 1 else MODEL
    return {name: value.replace(model, MODEL) if isinstance(value, str) else value for name, value in values.items()}


def _told(values: Mapping[str, object], name: str) -> str:
    return repr(values[name]) if name in values else "not set"


def is_one_scale(loop: RunConfig, source: str) -> bool:
    """Whether the same models give a source's rewards in each round, so that those of two rounds can be compared."""
    roles = {stage.model for stage in loop.stages.source(source).stages if stage.model}
    paths = [getattr(loop, f"{role}_model_path") or "" for role in roles]
    return TRAINED not in roles and not any(sign in path for path in paths for sign in (MODEL, ROUND))
