"""The table of families, and from a path and a name to a checkpoint folder and its family. Imports no torch."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_engine.errors import UserError, first_line
from data_engine.flag_files import has_hub_form, is_hub_id, look_up, nearest_path
from data_engine.processes.counting import waiting
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
        "data_engine.models.llava:Llava",
        ("llava", "llava_llama"),
        ("llava-1.5-7b", "llava-v1.5-7b", "rlaif-v-7b"),
        {"text_config": ("llama",), "vision_config": ("clip_vision_model",)},
    ),
    "omnilmm": Family("data_engine.models.omnilmm:OmniLMM", ("omnilmm",), ("omnilmm-12b", "rlaif-v-12b")),
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


# Files of checkpoints, which no hub id is named like.
FILE_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json")
# Field of a config.json, see reading_part.
READING_PART = "thinker_config"
# What a clone without Git LFS leaves in the place of a large file begins so.
LFS = b"version https://git-lfs"


class ModelError(UserError):
    """A checkpoint, or a name for it, that cannot be used as it is."""


def reason(error: Exception) -> str:
    """What a library says of a broken file, in one line that is not too long."""
    told = " ".join(str(error).split())
    return told if len(told) <= 300 else f"{told[:200]} ... {told[-80:]}"


def refuse_pointer(path: Path) -> None:
    """Raise ModelError where a file is the text that a clone without Git LFS leaves in its place, or is not for us."""
    try:
        # Unbuffered: else Python 3.14 reads 128 kB.
        with open(path, "rb", buffering=0) as file:
            begin = file.read(len(LFS))
    except PermissionError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; have it given to this user") from None
    if begin == LFS:
        raise ModelError(f'{path} is a Git LFS pointer, not the file itself: run "git lfs pull" in {path.parent}')


def read_json(path: Path) -> dict:
    """A JSON object. Raises ModelError naming the file that is missing, broken, or a Git LFS pointer."""
    try:
        refuse_pointer(path)
        found = json.loads(path.read_text(encoding="utf-8"))
    except ModelError:
        raise
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {reason(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def reading_part(config: dict) -> dict:
    """Of the config.json of a model that speaks as well, as Qwen's Omni models, that of the part that reads and writes.

    transformers loads that part from the folder of the whole.
    """
    part = config.get(READING_PART)
    return part if isinstance(part, dict) else config


def resolve(path: str, revision: str | None = None) -> Path:
    """A local folder, or that of a hub id in the local cache. Raises ModelError where neither exists."""
    # os.path, not pathlib: a name that is too long, or has a zero byte, is no folder, and no exception.
    if os.path.isdir(path):
        return Path(path).resolve()
    try:
        look_up("model path", path)
    except UserError as error:
        raise ModelError(str(error)) from None
    if is_hub_id(path, FILE_ENDINGS):
        return fetch(path, revision)
    if not has_hub_form(path, FILE_ENDINGS) or os.path.lexists(path):
        raise ModelError(f"model path {path!r} is neither a folder nor a hub id such as org/name{nearest_path(path)}")
    if (kept := _cached(path, revision)) is not None:
        return kept
    folder, _, name = path.partition("/")
    raise ModelError(
        f"model path {path!r}: the folder {folder!r} here has no {name!r}{nearest_path(path)}; if a model of the hub "
        f'is meant, fetch it first: "hf download {path}"'
    )


def _cached(path: str, revision: str | None) -> Path | None:
    """The folder of a hub id in the local cache, without asking the hub; None where it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, ValueError):
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    return None


def fetch(path: str, revision: str | None = None) -> Path:
    """Download a hub id into the local cache; its folder there. Raises ModelError where that fails."""
    from huggingface_hub import snapshot_download

    patterns = [
        "*.json",
        "*.model",
        "*.txt",
        "*.tiktoken",
        "*.jinja",
        "*.safetensors",
        "*.bin",
        "openai/*",
        "conversation.py",
    ]
    try:
        with waiting(f"{path} is no folder here: asking the model hub"):
            return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except Exception as error:
        reason = first_line(error)
        raise ModelError(
            f"{path!r} is no local folder, and the model hub did not give it either ({reason}); "
            f"download it and pass its folder{nearest_path(path)}"
        ) from error


def _refuse_quantised(raw: dict, where: Path) -> None:
    if (told := quantised(raw)) is not None:
        raise ModelError(
            f"{where} has a {told}: quantised checkpoints are not read. "
            "Pass one in bfloat16, float16 or float32; if the weights here are that, remove the field"
        )


def quantised(raw: dict) -> str | None:
    """The field by which a config.json says that weights are quantised, and the method; None where it does not."""
    parts = (raw.get(name) for name in ("text_config", "llm_config", "vision_config"))
    for part in (raw, *(part for part in parts if isinstance(part, dict))):
        for name in ("quantization_config", "compression_config"):
            if told := part.get(name):
                method = told.get("quant_method") if isinstance(told, dict) else None
                return f"{name} ({method or 'of unknown method'})"
    return None


def family_of(folder: Path, name: str | None = None) -> str:
    """The family by config.json. Raises ModelError where that or `name` is unknown, or the two contradict.

    A checkpoint whose weights are quantised is named for what it is.
    """
    if not is_file(folder / "config.json") and (steps := matching(folder, "checkpoint-*")):
        # As text, checkpoint-900 is behind checkpoint-1000.
        last = max(steps, key=lambda step: (len(step.name), step.name))
        raise ModelError(f"{folder} has no config.json, but checkpoints of a trainer: name one, such as {last}")
    raw = read_json(folder / "config.json")
    _refuse_quantised(raw, folder / "config.json")
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
        # Which of them it can be, transformers says: see processor.load_config.
        return AUTO
    raise ModelError(f"{where} has model_type {model_type!r}; expected the name of a family of models")
