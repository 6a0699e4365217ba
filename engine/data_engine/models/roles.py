"""The model of a role by its flags, and messages about it that name the flag. Imports no torch."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from data_engine.config import RunConfig
from data_engine.models.adapter_folder import model_folder, with_real_places
from data_engine.models.registry import ModelError


def folder_of(config: RunConfig, role: str) -> Path:
    """The checkpoint folder, or the folder of links of an adapter and its base. Raises ModelError as model_folder."""
    path, revision = (getattr(config, f"{role}_model_{what}") for what in ("path", "revision"))
    return model_folder(path, revision, getattr(config, f"{role}_base_model_path"), f"--{role}_base_model_path")


@contextlib.contextmanager
def naming_flag(config: RunConfig, role: str) -> Iterator[None]:
    """Inside, a ModelError names the flag of the role and its value."""
    flag = f"--{role}_model_path"
    try:
        yield
    except ModelError as error:
        told = with_real_places(str(error))
        raise ModelError(told if told.startswith(flag) else f'{flag} "{getattr(config, flag[2:])}": {told}') from error
