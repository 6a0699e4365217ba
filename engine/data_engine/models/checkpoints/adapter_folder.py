"""An adapter of peft and the model that it changes, laid together as one checkpoint folder. Imports no torch.

A folder or hub id in; out comes that folder, or, for an adapter, a folder of links: the files of its base, those of the
adapter's tokenizer, processor and chat template in the place of the base's, and a link to either folder. adapter.py
merges the weights when a family reads such a folder.
"""

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from data_engine.flag_files import has_hub_form
from data_engine.models.checkpoints.adapter_config import CONFIG, check_settings
from data_engine.models.checkpoints.json_files import ModelError, quantised, read_json, refuse_pointer
from data_engine.models.checkpoints.places import FILE_ENDINGS, fetch, resolve
from data_engine.models.checkpoints.weight_files import FILES, INDEX, check_archive, read_header
from data_engine.store.absent import is_file

# In a folder of links, those of the two folders.
ADAPTER, BASE = ".adapter", ".base"
PREFIX = "data-engine-adapter-"
# Of the same tensors, peft takes the first that is there.
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What trainers of LLaVA's original code save beside an adapter: whole weights, mostly the projector's.
MORE_WEIGHTS = "non_lora_trainables.bin"

# Files that win over the base's. The second of a pair says by which of them a whole set is there; the base's then goes.
_VOCABULARY = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken")
_TOKENIZER = (*_VOCABULARY, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_TEMPLATE = ("chat_template*", "additional_chat_templates")
_SETS = (
    (_TOKENIZER, _VOCABULARY), (_TEMPLATE, _TEMPLATE), (("*processor_config.json",), ()),
    # The chat formats of InternVL's own layout.
    (("conversation.py",), ()),
    # Trained beside the adapter of a reward model.
    (("value_head.*",), ("value_head.*",)),
)  # fmt: skip

_LINKED = re.compile(rf"/[^\s\"':;,()]*/{PREFIX}\w+(?:/[^\s\"':;,()]+)?")


def is_adapter(folder: Path) -> bool:
    """Whether a local folder holds an adapter of peft."""
    return is_file(folder / CONFIG)


def model_folder(
    path: str, revision: str | None = None, base_path: str | None = None, base_flag: str = "base_path"
) -> Path:
    """The folder of a checkpoint, or the folder of links of an adapter and its base; a hub id is fetched.

    `base_path` takes the place of the base that adapter_config.json names; `base_flag` is what messages call it.
    Raises ModelError for what cannot be merged, as can be seen without torch.
    """
    folder = resolve(path, revision)
    if not is_adapter(folder):
        if base_path is not None:
            raise ModelError(f"{base_flag} is for an adapter, and {folder} has no {CONFIG}: leave it out")
        return folder
    refuse_both(folder)
    settings = check_settings(folder / CONFIG)
    _check_weights(folder)
    base = _base(folder, settings, base_path, base_flag)
    return laid_together(folder, base)


def parts(folder: Path) -> tuple[Path, Path] | None:
    """The folders of the adapter and of its base, of a folder of links; None of any other."""
    links = [folder / name for name in (ADAPTER, BASE)]
    return (links[0].resolve(), links[1].resolve()) if all(map(Path.is_symlink, links)) else None


def reopened(told: Mapping) -> Path:
    """The folder of a model that run.json tells of. Raises ModelError where one of an adapter's two is gone."""
    folder, adapter = Path(told["folders"][0]), told.get("adapter")
    return folder if adapter is None else laid_together(Path(adapter), folder)


def adapters_told(run_file: Mapping) -> list[str]:
    """A sentence for each model of a run that is an adapter, by what run.json says."""
    found = {role: told for role, told in run_file.get("models", {}).items() if told.get("adapter")}
    return [f"{role} model: the adapter {told['adapter']}, merged into {told['folders'][0]}"
            for role, told in found.items()]  # fmt: skip


def base_folder(folder: Path) -> Path:
    """Where a checkpoint lies: of a folder of links, that of the base."""
    found = parts(folder)
    return folder if found is None else found[1]


def with_real_places(text: str) -> str:
    """A message, with the file that a link stands for, or both folders, in the place of a folder of links."""

    def real(found: re.Match) -> str:
        path = Path(found[0])
        folder = next(place for place in (path, *path.parents) if place.name.startswith(PREFIX))
        both, inside = parts(folder), path.relative_to(folder).parts
        if both is None:
            return found[0]
        if not inside:
            return f"{both[0]} (an adapter of {both[1]})"
        link = folder / inside[0]
        # readlink alone: a file in the hub's cache is a link to one without its name.
        return str(Path(os.readlink(link) if link.is_symlink() else both[1] / inside[0], *inside[1:]))

    return _LINKED.sub(real, text)


@contextlib.contextmanager
def telling_real_places() -> Iterator[None]:
    """Inside, a ModelError about a folder of links names the files that stand behind it."""
    try:
        yield
    except ModelError as error:
        if (told := with_real_places(str(error))) == str(error):
            raise
        raise ModelError(told) from error


def refuse_both(folder: Path) -> None:
    """Raise ModelError for whole weights beside an adapter: nothing says whether it is merged into them."""
    if not is_file(folder / CONFIG):
        return
    whole = next((name for file in FILES for name in (file, file + INDEX) if is_file(folder / name)), None)
    if whole is not None:
        raise ModelError(
            f"{folder} holds whole weights ({whole}) and an adapter ({CONFIG}), and nothing says whether the one is "
            "merged into the other: move the files of one of the two into a folder of their own"
        )


def _check_weights(folder: Path) -> None:
    for file in adapter_files(folder):
        refuse_pointer(file)
        if file.suffix == ".bin":
            check_archive(file)
        else:
            read_header(file)


def adapter_files(folder: Path) -> list[Path]:
    """The files with an adapter's weights. Raises ModelError where there is none."""
    found = next((folder / name for name in WEIGHTS if is_file(folder / name)), None)
    if found is None:
        raise ModelError(f"{folder} has {CONFIG}, but no weights of an adapter: expected {' or '.join(WEIGHTS)}")
    more = folder / MORE_WEIGHTS
    return [found, more] if is_file(more) else [found]


def _base(folder: Path, settings: Mapping, base_path: str | None, base_flag: str) -> Path:
    where, named = folder / CONFIG, settings.get("base_model_name_or_path")
    if base_path is None and not (isinstance(named, str) and named.strip()):
        raise ModelError(f"{where} does not say of which model it is (base_model_name_or_path): name it by {base_flag}")
    # The revision is one of the model that stands beside it.
    revision = settings.get("revision") if base_path in (None, named) else None
    try:
        # A hub id that was written elsewhere is one, whatever folders are here.
        from_hub = base_path is None and has_hub_form(named, FILE_ENDINGS) and not os.path.isdir(named)
        base = fetch(named, revision) if from_hub else resolve(base_path or named, revision)
    except ModelError as error:
        if base_path is not None:
            raise ModelError(f'{base_flag} "{base_path}": {error}') from error
        raise ModelError(
            f"{where} names the base model {named!r}, which cannot be had ({error}): name its folder by {base_flag}"
        ) from error
    refuse_both(base)
    if is_file(base / CONFIG):
        raise ModelError(
            f"the base model {base} of {folder} is an adapter itself: merge it into its own base first, with peft's "
            f"merge_and_unload, save that, and name its folder by {base_flag}"
        )
    if is_file(base / "config.json") and (told := quantised(read_json(base / "config.json"))) is not None:
        raise ModelError(
            f"the base model {base} of {folder} has a {told} in its config.json, and an adapter is merged into weights "
            f"that are not quantised: name the model that it was made from by {base_flag}"
        )
    return base


@functools.cache
def laid_together(adapter: Path, base: Path) -> Path:
    """A folder of links to the files of both, for as long as this process lives. Raises ModelError.

    A file of settings that is of both is written there.
    """
    for one in (adapter, base):
        if not one.is_dir():
            raise ModelError(f"{one} is no folder any more")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    atexit.register(_remove, folder, os.getpid())
    for place, names in ((base, _of_base(adapter, base)), (adapter, _own(adapter))):
        for name in names:
            (folder / name).symlink_to(place / name)
    _let_own_pixels_win(folder, _own(adapter))
    (folder / ADAPTER).symlink_to(adapter)
    (folder / BASE).symlink_to(base)
    return folder


def _remove(folder: Path, owner: int) -> None:
    # A forked process inherits what its parent does at its end.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _own(adapter: Path) -> set[str]:
    """Of an adapter's files those that win over the base's."""
    return {name for files, _ in _SETS for name in _matching(adapter, files)}


def _of_base(adapter: Path, base: Path) -> set[str]:
    """Of a base's files those that no file of the adapter takes the place of."""
    gone = _own(adapter)
    for files, sign in _SETS:
        if _matching(adapter, sign):
            gone |= _matching(base, files)
    return {one.name for one in base.iterdir() if not one.name.startswith(".")} - gone


def _let_own_pixels_win(folder: Path, own: set[str]) -> None:
    """Take what makes pixels out of the base's processor_config.json where the adapter has a file of its own for it.

    Releases of transformers from 5 on write it there, among settings that no other file has, and look there first.
    """
    older, newer = "preprocessor_config.json", "processor_config.json"
    if older not in own or newer in own or not is_file(folder / newer):
        return
    settings = read_json(folder / newer)
    if settings.pop("image_processor", None) is not None:
        (folder / newer).unlink()
        (folder / newer).write_text(json.dumps(settings))


def _matching(folder: Path, patterns: Iterable[str]) -> set[str]:
    names = [one.name for one in folder.iterdir()]
    return {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
