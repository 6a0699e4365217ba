"""Where a model lies: its path or hub id in, a local folder out, which is downloaded where it is not there."""

import contextlib
import os
from pathlib import Path

from data_engine.errors import UserError, first_line
from data_engine.flag_files import has_hub_form, is_hub_id, look_up, nearest_path
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.processes.counting import waiting

# Files of checkpoints, which no hub id is named like.
FILE_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json")


def resolve(path: str | os.PathLike[str], revision: str | None = None) -> Path:
    """A local folder, or that of a hub id in the local cache. Raises ModelError where neither exists."""
    path = os.fspath(path)
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
