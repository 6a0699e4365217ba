"""One check of the checkpoints of a run, before any work: `validate`, `submit` and `run` make the same.

It reads config.json, the tokenizer, and the headers of the weight files, and finds what loading would refuse. What can
be seen without torch comes first, for all models, so that a missing file is told in an instant.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.config import RunConfig
from data_engine.errors import Collected
from data_engine.models import class_for, family_class, head_options
from data_engine.models.checkpoints.json_files import ModelError, refuse_pointer
from data_engine.models.checkpoints.weight_files import check_files
from data_engine.models.registry import AUTO, family_of
from data_engine.models.roles import folder_of, naming_flag, of_roles
from data_engine.stages import HEADED, kwargs_flag
from data_engine.store.absent import is_file

TOKENIZERS = ("tokenizer.model", "tokenizer.json")


@dataclass(frozen=True)
class Checked:
    """A checkpoint that can be used."""

    folder: Path
    family: str


def check_models(config: RunConfig, roles: Iterable[str]) -> dict[str, Checked]:
    """The checkpoints by role. A hub id is fetched.

    Raises ModelError naming flag, folder, and what is wrong, or UserErrors for several.
    """
    families, folders, problems = {}, {}, Collected()
    for role in roles:
        with problems.noting(), naming_flag(config, role):
            folder = folder_of(config, role)
            families[role] = check_folder(folder, getattr(config, f"{role}_model_name"))
            folders[role] = folder
    with problems.noting():
        check_loadable(config, folders, families)
    problems.raise_any()
    return {role: Checked(folder, families[role]) for role, folder in folders.items()}


def check_loadable(
    config: RunConfig, folders: Mapping[str, Path], families: Mapping[str, str], sound: list[str] | None = None
) -> None:
    """Raise ModelError for what loading these checkpoints would refuse, UserErrors for several.

    Roles without a mistake are added to `sound`.
    """
    problems, good = Collected(), [] if sound is None else sound
    # One message for all models that it is about, such as one of a --chat_template that fits none of them.
    wrong: dict[str, list[str]] = {}
    for role, folder in folders.items():
        with problems.noting():
            try:
                check_weights(folder, families[role], config.chat_of(role), headed=role in HEADED)
                if config.zero3 == "on":
                    family_class(families[role]).check_split(folder)
            except ModelError as error:
                wrong.setdefault(str(error), []).append(role)
            else:
                good.append(role)
    for message, roles in wrong.items():
        problems.note(of_roles(config, roles, ModelError(message)))
    unused: dict[str, list[set[str]]] = {}
    flags = {role: kwargs_flag(role) for role in folders if config.chat_of(role).kwargs}
    for role, flag in flags.items():
        # A template of a checkpoint that is wrong may be one that reads them.
        if all(other in good for other, own in flags.items() if own == flag):
            chat = config.chat_of(role)
            side = class_for(families[role], chat).text_side(folders[role], chat)
            unused.setdefault(flag, []).append(set(side.unused_kwargs))
    for flag, found in unused.items():
        if unread := set.intersection(*found):
            problems.note(ModelError(
                f"{flag} has {', '.join(sorted(unread))}, which no chat template of this run reads: leave it out, or "
                "see how the template spells it"
            ))  # fmt: skip
    problems.raise_any()


def check_folder(folder: Path, name: str | None = None) -> str:
    """The family of a checkpoint. Raises ModelError for what is missing or broken, as can be seen without torch."""
    family = family_of(folder, name)
    if family == AUTO:
        # Its processor looks for what it needs.
        check_files(folder)
        return family
    tokenizer = next((folder / file for file in TOKENIZERS if is_file(folder / file)), None)
    if tokenizer is None:
        raise ModelError(f"{folder} has no tokenizer: expected {' or '.join(TOKENIZERS)}")
    refuse_pointer(tokenizer)
    check_files(folder)
    return family


def check_weights(folder: Path, family: str, chat: ChatSettings = NO_CHAT_SETTINGS, headed: bool = False) -> None:
    """Raise ModelError for what loading would refuse: names, shapes, dtypes of all weights, CLIP tower, tokenizer."""
    class_for(family, chat).check(folder, chat, **head_options(family, headed))
