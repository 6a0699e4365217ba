"""Files and folders that flags name: looked up, or read whole as text, before a run begins."""

import difflib
import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from data_engine.errors import LEAST_LIKENESS, UserError

# A whole hash would say nothing in a message.
HASH_LENGTH = 12
# Not one that begins with a dot, which is a folder of this machine.
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
# With one slash of two, where a Path was made of it; a drive of Windows has one letter.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
# The page of a model or a dataset, not one of its files.
_REPOSITORY = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+/[\w.-]+?)(?:/tree/main)?/?"
)
_NO_ADDRESS = "; addresses such as {}://... are not read: copy it to this machine, and name the copy"
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
# NAME=FILE,NAME=FILE; what has a slash before its first = is a path.
_NAMED = re.compile(r"[^/\\=]*=")
FILES_BY_NAME = "a file, or several as in faithful=one.txt,helpful=two.txt"
RULES_BY_NAME = "a rule, or several as in faithful=rules.py:faithful,right=contains"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_REFUSED = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)


def from_home(path: str) -> str:
    """A path with a home in the place of its ~, which a shell leaves in quotes, in --name=~/path and in a file.

    Where there is no such home, the path as it is.
    """
    return os.path.expanduser(path)


def require_filled_in(where: str, path: str | Path) -> None:
    """Raise UserError for the path of a folder to be made, in which something was to be filled in: it would get the
    name of a variable.
    """
    if not os.path.lexists(path) and (hint := _not_filled_in(str(path))):
        raise UserError(f'{where} "{path}" cannot be meant{hint}')


def _not_filled_in(path: str) -> str:
    """A hint at what a shell would have put into a path, or nothing."""
    if variable := _VARIABLE.search(path):
        return f"; {variable[0]} is filled in by a shell alone, not in a configuration and not in single quotes"
    if path.startswith("~"):
        return f"; there is no home of that name: {Path(path).parts[0]}"
    return ""


def look_up(where: str, path: str | Path) -> None:
    """Raise UserError where the system cannot tell whether such a path is there; `where` names the flag.

    So it is of a folder that this user may not look into, of links in a circle, and of a name that is too long.
    """
    try:
        os.stat(path)
    except OSError as error:
        # Nothing is there, or the disk fails: whoever opens the path says so.
        if error.errno not in _REFUSED:
            return
        raise UserError(f'{where} "{path}" cannot be looked up: {error.strerror}') from None
    except ValueError:
        raise UserError(f"{where} {str(path)!r} is no name of a file: it has a zero byte") from None


def has_hub_form(path: str, endings: tuple[str, ...]) -> bool:
    """Whether `path` is written like a hub id, org/name, and not like one of the files that end so."""
    return _HUB_ID.fullmatch(path) is not None and not path.lower().endswith(endings)


def is_hub_id(path: str, endings: tuple[str, ...]) -> bool:
    """Whether `path` is a hub id: it has that form, and neither it nor its folder exists here.

    A typo in a path must not cost a minute at the hub.
    """
    # Not by Path, which raises where a name is too long.
    return has_hub_form(path, endings) and not os.path.lexists(path) and not os.path.exists(os.path.dirname(path))


def nearest_path(path: str | Path) -> str:
    """A hint that names what is there and is written most like a path that is not, or nothing.

    Of what is no path of this machine, an address or a pattern, it says what to give instead.
    """
    if address := _ADDRESS.match(str(path)):
        repository = _REPOSITORY.fullmatch(str(path))
        return f'; give the id of the hub: "{repository[1]}"' if repository else _NO_ADDRESS.format(address[1])
    if {*"*?"} & {*str(path)}:
        return "; a pattern is not read: name the folder of the files"
    if hint := _not_filled_in(str(path)):
        return hint
    missing = Path(path)
    try:
        while not missing.parent.exists():
            missing = missing.parent
        if missing.exists():
            return ""
        # Endings would make all files of one kind alike; of two that differ by it, the one with the same ending.
        beside = sorted(missing.parent.iterdir(), key=lambda entry: (entry.suffix != missing.suffix, entry.name))
        stems = dict.fromkeys(entry.stem for entry in beside)
        for stem in difflib.get_close_matches(missing.stem, stems, cutoff=LEAST_LIKENESS):
            for entry in (entry for entry in beside if entry.stem == stem):
                meant = entry / Path(path).relative_to(missing)
                if meant.exists():
                    return f'; did you mean "{meant}"?'
    # A folder that may not be read, or a name that no file can have.
    except (OSError, ValueError):
        pass
    return ""


def read_text(where: str, path: str, expected: str, otherwise: str | None = None) -> str:
    """What is in the file; `where` names the flag, `expected` says what to name instead, `otherwise` what is used
    without the flag, where an empty file means a mistake.

    Raises UserError where it cannot be read, is not text in UTF-8, or is empty and may not be.
    """
    try:
        # A byte order mark, as editors of Windows write it, is no part of the text.
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        told = f"{where} cannot be read: {error.strerror}; name a file with {expected}{nearest_path(path)}"
        raise UserError(told) from None
    # Bytes that are no UTF-8, or a name that no file can have.
    except ValueError:
        raise UserError(f"{where} is not text in UTF-8; name a file with {expected}") from None
    if otherwise is not None and not text.strip():
        raise UserError(f"{where} is empty; without the flag, {otherwise} is used")
    return text


def told_of_hashes(by_name: Mapping[str, str]) -> str:
    """What is told of files that have names: the beginnings of their hashes, as in messages about one file."""
    shown = {name: " ".join(word[:HASH_LENGTH] for word in value.split()) for name, value in by_name.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def names_in(value: object) -> tuple[str, ...]:
    """The names in NAME=FILE,NAME=FILE, in its order; none of a single file, which has no name, nor of what is no text,
    as YAML may hold it.
    """
    return tuple(name for name, _ in _items(value)) if isinstance(value, str) and _NAMED.match(value) else ()


def each_path(text: str, change: Callable[[str], str]) -> str:
    """The value of a flag that takes a file, or NAME=FILE,NAME=FILE, with each path changed."""
    if not _NAMED.match(text):
        return change(text)
    items = (item.partition("=") for item in text.split(","))
    return ",".join(name + equals + (change(path.strip()) if path.strip() else path) for name, equals, path in items)


def files_by_name(flag: str, text: str | None, expected: str = FILES_BY_NAME) -> dict[str, str | None]:
    """The paths in NAME=FILE,NAME=FILE by name, in the order of the names, which is the same however they are given.

    A single file has the name "", and so has None, where the flag is not given. Raises UserError for what begins as
    such a list and is none; `expected` says what would be one.
    """
    if not names_in(text):
        return {"": text}
    found = {}
    for name, path in _items(text):
        if not path:
            raise UserError(f'{flag} must be {expected}, got "{name}" in "{text}"')
        if not _NAME.fullmatch(name):
            raise UserError(
                f'{flag} calls a file "{name}", which is part of the name of a column: it must be made of letters, '
                "digits and _, and begin with a letter"
            )
        if name in found:
            raise UserError(f"{flag} names {name} twice; give each file a name of its own")
        found[name] = path
    return dict(sorted(found.items()))


def _items(text: str) -> list[tuple[str, str]]:
    items = (item.partition("=") for item in text.split(","))
    return [(name.strip(), path.strip()) for name, _, path in items]
