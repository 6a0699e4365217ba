"""The rule `objects`: 1 - objects named that are not in the picture / objects named; None where none is named.

The column `objects` has the names of the objects in a picture: a list, or a text with commas or a list in JSON. Names
that occur in it anywhere in the dataset are those that are looked for in answers; each counts once an answer. It is the
complement of CHAIR's share, arXiv:1809.02156, over distinct objects and without its table of synonyms.
"""

import contextlib
import re
import unicodedata
from collections.abc import Callable, Iterable

from data_engine.rules.cells import names_in

_WORD = re.compile(r"\w+")
_ALIKE = {"person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "goose": "geese",
          "foot": "feet", "tooth": "teeth", "knife": "knives", "leaf": "leaves", "shelf": "shelves", "loaf": "loaves",
          "wolf": "wolves", "calf": "calves", "half": "halves", "scarf": "scarves"}  # fmt: skip
_IRREGULAR = {one: {other} for pair in _ALIKE.items() for one, other in (pair, pair[::-1])}

Name = tuple[str, ...]
"""the words of a name"""


def make(collected: list) -> Callable[[dict, list[str]], list[float | None]]:
    """The rule; `collected` is the whole column."""
    known = Known({words(name) for cell in collected for name in _names(cell)} - {()})

    def objects(row: dict, answers: list[str]) -> list[float | None]:
        names = names_in(row["objects"])
        if names is None:
            return [None] * len(answers)
        there = {form for name in names for form in forms(words(name))}
        return [share(known.named(answer), there) for answer in answers]

    return objects


def _names(cell: object) -> list[str]:
    """The names in a cell; none in one that cannot be read, whose own question alone is left out."""
    with contextlib.suppress(ValueError):
        return names_in(cell) or []
    return []


def share(named: Iterable[Name], there: set[Name]) -> float | None:
    """The share of the named objects that are there."""
    right = [name in there for name in named]
    return sum(right) / len(right) if right else None


class Known:
    """The names that are looked for."""

    def __init__(self, names: Iterable[Name]) -> None:
        self._name_of: dict[Name, Name] = {}
        # Of two names that are the same in another number, as "dog" and "dogs", the shorter one stands for both.
        for name in sorted(names, key=lambda name: (sum(map(len, name)), name)):
            for form in forms(name):
                self._name_of.setdefault(form, self._name_of.get(name, name))
        self._longest = max(map(len, self._name_of), default=0)

    def named(self, text: str) -> list[Name]:
        """The objects that a text names, each once, as it names them first: the longest name at each word."""
        said, place, found = words(text), 0, {}
        while place < len(said):
            lengths = range(min(self._longest, len(said) - place), 0, -1)
            length = next((n for n in lengths if said[place : place + n] in self._name_of), 0)
            if length:
                name = said[place : place + length]
                found.setdefault(self._name_of[name], name)
            place += length or 1
        return list(found.values())


def words(text: str) -> Name:
    """The words of a text in one case; a hyphen or an underscore parts two."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("_", " ")))


def forms(name: Name) -> set[Name]:
    """A name, and what its plural or singular may be: the last word with another ending."""
    if not name:
        return set()
    *first, last = name
    return {(*first, form) for form in {last} | _plurals(last) | _singulars(last)}


def _plurals(word: str) -> set[str]:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return {f"{word}es"}
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return {f"{word[:-1]}ies"}
    return {f"{word}s", f"{word}es"} if word.endswith("o") else {f"{word}s"}


def _singulars(word: str) -> set[str]:
    """The words that a word may be the plural of. A wrong one does no harm: it is in no text."""
    if not word.endswith("s") or word.endswith(("ss", "us", "is")) or len(word) < 4:
        return set()
    found = {word[:-1]}
    if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        found.add(word[:-2])
    if word.endswith("ies"):
        found.add(f"{word[:-3]}y")
    return found
