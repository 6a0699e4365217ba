"""The JSON files of a checkpoint, what its config.json tells of the weights, and the error of checkpoints. No torch."""

import json
from pathlib import Path

from data_engine.errors import UserError

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


def refuse_quantised(raw: dict, where: Path) -> None:
    """Raise ModelError where the config.json at `where` says that weights are quantised."""
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
