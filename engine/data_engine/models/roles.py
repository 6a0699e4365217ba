"""The model of a role by its flags, and messages about it that name the flag. Imports no torch."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_engine.config import RunConfig
from data_engine.models.checkpoints.adapter_folder import model_folder, with_real_places
from data_engine.models.checkpoints.json_files import ModelError


def folder_of(config: RunConfig, role: str) -> Path:
    """The checkpoint folder, or the folder of links of an adapter and its base. Raises ModelError as model_folder."""
    path, revision = (getattr(config, f"{role}_model_{what}") for what in ("path", "revision"))
    return model_folder(path, revision, getattr(config, f"{role}_base_model_path"), f"--{role}_base_model_path")


@contextlib.contextmanager
def naming_flag(config: RunConfig, role: str) -> Iterator[None]:
    """Inside, a ModelError names the flag of the role and its value."""
    try:
        yield
    except ModelError as error:
        raise of_roles(config, [role], error) from error


def of_roles(config: RunConfig, roles: Sequence[str], error: ModelError) -> ModelError:
    """The same error, naming the flags of the roles that have it, and their values."""
    told, flags = with_real_places(str(error)), [f"--{role}_model_path" for role in roles]
    if told.startswith(tuple(flags)):
        return ModelError(told)
    named = [f'{flag} "{getattr(config, flag[2:])}"' for flag in flags]
    return ModelError(f"{' and '.join(named)}: {told}")
