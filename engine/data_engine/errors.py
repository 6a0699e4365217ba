"""Exceptions that a command turns into an exit code, and messages that several places give."""

import difflib
from collections.abc import Iterable

# Why a question is left out that exceeds the memory on its own, and what is said where no question ever fitted.
OUT_OF_MEMORY = "out of memory, even with one answer at a time"
NO_ROOM = (
    f"{OUT_OF_MEMORY}: the model leaves no room for a single question; free the device's memory, lower "
    "--max_new_tokens, or split the model with --zero3 on"
)


class UserError(ValueError):
    """A mistake that the user can mend: the command prints the message, without a traceback, and exits with 2."""


class IncompleteError(RuntimeError):
    """Stage 2 was asked for while units are missing: the command lists them and exits with 3."""


class LostRankError(RuntimeError):
    """A rank that the others cannot work without is gone: the command says which and exits with 1; a rerun goes on."""


class BadRow(ValueError):
    """A row that a stage cannot use; the message is the reason that the quarantine records."""


def nearest(name: str, known: Iterable[str], before: str = "") -> str:
    """A hint that names the known name nearest to a misspelled one, or nothing."""
    found = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"; did you mean {before}{found[0]}?" if found else ""
