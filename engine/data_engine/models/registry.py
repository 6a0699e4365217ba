"""From a path and a name to a folder and a family, before anything heavy is loaded. Imports no torch."""

import json
import re
from pathlib import Path

from data_engine.errors import UserError

# A family is one file and one line here; its class has `load(folder, device, dtype)`.
FAMILIES = {"llava": "data_engine.models.llava:Llava", "omnilmm": "data_engine.models.omnilmm:OmniLMM"}
NAMES = {
    "llava-1.5-7b": "llava",
    "llava-v1.5-7b": "llava",
    "rlaif-v-7b": "llava",
    "omnilmm-12b": "omnilmm",
    "rlaif-v-12b": "omnilmm",
}
MODEL_TYPES = {"llava": "llava", "llava_llama": "llava", "omnilmm": "omnilmm"}


class ModelError(UserError):
    """A checkpoint, or a name for it, that cannot be used as it is."""


def read_json(path: Path) -> dict:
    """A JSON object. Raises ModelError naming the file that is missing or broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def resolve(path: str, revision: str | None = None) -> Path:
    """A local folder as it is, or a hub id fetched into the local cache. Raises ModelError where neither exists."""
    if Path(path).is_dir():
        return Path(path).resolve()
    if Path(path).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise ModelError(f"model path {path!r} is neither a folder nor a hub id such as org/name")
    return fetch(path, revision)


def fetch(path: str, revision: str | None = None) -> Path:
    """A hub id's files, in the local cache. Raises ModelError where the hub does not give them."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.safetensors", "*.bin", "openai/*"]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path!r} is no local folder, and the model hub did not give it either ({reason}); "
            "download it and pass its folder"
        ) from error


def family_of(folder: Path, name: str | None = None) -> str:
    """The family that config.json tells. Raises ModelError where `name` is unknown or contradicts it."""
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in MODEL_TYPES:
        known = ", ".join(sorted(MODEL_TYPES))
        raise ModelError(f"{folder / 'config.json'} has model_type {model_type!r}; known: {known}")
    family = MODEL_TYPES[model_type]
    if name is None:
        return family
    if name.lower() not in NAMES:
        raise ModelError(f"unknown model name {name!r}; known: {', '.join(NAMES)} (any case)")
    if NAMES[name.lower()] != family:
        raise ModelError(
            f"model name {name!r} is of the family {NAMES[name.lower()]}, but {folder / 'config.json'} "
            f"has model_type {model_type!r}, of the family {family}; leave the name out or mend it"
        )
    return family
