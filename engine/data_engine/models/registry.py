"""The table of families, and from a checkpoint folder and a name to its family. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_engine.models.checkpoints.json_files import ModelError, read_json, refuse_quantised
from data_engine.store.absent import is_file, matching


@dataclass(frozen=True)
class Family:
    """Where a family's code is, and how its checkpoints are recognised."""

    code: str
    """module:class, a models.base.ModelFamily"""
    model_types: tuple[str, ...]
    """model_type of config.json"""
    names: tuple[str, ...] = ()
    """of published checkpoints, in lower case"""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """by a field of config.json that describes a part of the model, the model_types that the family knows of it"""

    def takes(self, raw: Mapping) -> bool:
        """Whether the parts that a config.json describes are the family's own."""
        found = {name: raw[name].get("model_type") for name in self.parts if isinstance(raw.get(name), dict)}
        return all(kind is None or kind in self.parts[name] for name, kind in found.items())


# A family is one file and one line here.
FAMILIES = {
    "llava": Family(
        "data_engine.models.native.llava:Llava",
        ("llava", "llava_llama"),
        ("llava-1.5-7b", "llava-v1.5-7b", "rlaif-v-7b"),
        {"text_config": ("llama",), "vision_config": ("clip_vision_model",)},
    ),
    "omnilmm": Family("data_engine.models.native.omnilmm:OmniLMM", ("omnilmm",), ("omnilmm-12b", "rlaif-v-12b")),
    "auto": Family("data_engine.models.auto.model:Auto", (), ("auto",)),
}
# The family of whatever else transformers' AutoModelForImageTextToText knows.
AUTO = "auto"


def names() -> dict[str, str]:
    """The family of each name."""
    return {name: key for key, family in FAMILIES.items() for name in family.names}


def model_types() -> dict[str, str]:
    """The family of each model_type."""
    return {model_type: key for key, family in FAMILIES.items() for model_type in family.model_types}


def family_of(folder: Path, name: str | None = None) -> str:
    """The family by config.json. Raises ModelError where that or `name` is unknown, or the two contradict.

    A checkpoint whose weights are quantised is named for what it is.
    """
    if not is_file(folder / "config.json") and (steps := matching(folder, "checkpoint-*")):
        # As text, checkpoint-900 is behind checkpoint-1000.
        last = max(steps, key=lambda step: (len(step.name), step.name))
        raise ModelError(f"{folder} has no config.json, but checkpoints of a trainer: name one, such as {last}")
    raw = read_json(folder / "config.json")
    refuse_quantised(raw, folder / "config.json")
    told = None if name is None else names().get(name.lower())
    if name is not None and told is None:
        raise ModelError(f"unknown model name {name!r}; known: {', '.join(names())} (any case)")
    family = AUTO if told == AUTO else _family_by_type(raw, folder / "config.json")
    if told not in (None, family):
        raise ModelError(
            f"model name {name!r} is of the family {told}, but {folder / 'config.json'} "
            f"has model_type {raw['model_type']!r}, of the family {family}; leave the name out or mend it"
        )
    return family


def _family_by_type(raw: Mapping, where: Path) -> str:
    model_type = raw.get("model_type")
    native = model_types().get(model_type) if isinstance(model_type, str) else None
    if native is not None and FAMILIES[native].takes(raw):
        return native
    if isinstance(model_type, str):
        # Which of them it can be, transformers says: see auto/config.py.
        return AUTO
    raise ModelError(f"{where} has model_type {model_type!r}; expected the name of a family of models")
