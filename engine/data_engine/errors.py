"""Exceptions that a command turns into an exit code, and messages that several places give."""

import contextlib
import difflib
import re
import shlex
from collections.abc import Iterable, Iterator

# Why a question is left out that exceeds the memory on its own, and what is said where no question ever fitted.
OUT_OF_MEMORY = "out of memory, even with one answer at a time"
NO_ROOM = (
    f"{OUT_OF_MEMORY}: the model leaves no room for a single question; free the device's memory, lower "
    "--max_new_tokens, or split the model with --zero3 on"
)
REASON_LENGTH = 100
# Sizes and names in a reason would make every reason a kind of its own.
PARTICULARS = re.compile(r"\"[^\"]*\"|'[^']*'|\d+(?:\.\d+)?")


class UserError(ValueError):
    """A mistake that the user can mend: the command prints the message, without a traceback, and exits with 2."""

    told = False
    """whether it has been printed, by a check that had to wait for others"""


class UserErrors(UserError):
    """Several of them at once: the command prints each on a line of its own, then their number and `outcome`."""

    def __init__(self, found: Iterable[UserError], outcome: str = "nothing was started") -> None:
        self.found, self.outcome = tuple(found), outcome
        super().__init__("\n".join(map(str, self.found)))


class Collected:
    """The mistakes that several checks find, instead of the first of them alone."""

    def __init__(self, found: Iterable[UserError] = ()) -> None:
        self.found: list[UserError] = []
        for error in found:
            self.note(error)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Inside, a UserError is noted, and ends the block alone."""
        try:
            yield
        except UserError as error:
            self.note(error)

    def note(self, error: UserError) -> None:
        """Each message counts once, whichever checks come upon it."""
        for one in apart(error):
            if str(one) not in map(str, self.found):
                self.found.append(one)

    def raise_any(self) -> None:
        """Raise what was found: a single mistake as it was raised, several as UserErrors."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise UserErrors(self.found)


def apart(error: UserError) -> tuple[UserError, ...]:
    """The single mistakes of an exception."""
    return error.found if isinstance(error, UserErrors) else (error,)


class IncompleteError(RuntimeError):
    """What was asked for cannot be made of what is there, such as pairs while units are missing: exit code 3."""


class TakenOverError(IncompleteError):
    """Another process has taken over what this one was making, and had not published: the command exits with 3."""


class LostRankError(RuntimeError):
    """A rank that the others cannot work without is gone: the command says which and exits with 1; a rerun goes on."""


class TrainerError(RuntimeError):
    """The trainer of a round failed: the command tells how and exits with 1; a rerun goes on."""


class BadRow(ValueError):
    """A row that a stage cannot use; the message is the reason that the quarantine records."""


# Names that are as near as typos; below it are those with some letters in common: temp and system, extra and beta.
LEAST_LIKENESS = 0.75


def nearest(name: str, known: Iterable[str], before: str = "") -> str:
    """A hint that names the known name nearest to a misspelled one, or nothing; neither case nor - and _ tell apart."""
    plain = {one.lower().replace("-", "_"): one for one in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1)
    return f"; did you mean {before}{plain[found[0]]}?" if found else ""


def first_line(error: BaseException) -> str:
    """What an exception says, for the end of a message; its name where it says nothing, as Python's MemoryError."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def python_command(code: str, *arguments: object) -> str:
    """For the end of a message: a command of a shell that runs `code`, whose sys.argv[1:] are the arguments.

    Paths are arguments, and no text of the code: a quote in one would end that.
    """
    return shlex.join(["python", "-c", code, *map(str, arguments)])


def kind_of(reason: str) -> str:
    """Why a row is left out, without what is particular to that row, on one line."""
    return " ".join(PARTICULARS.sub("…", reason).split())[:REASON_LENGTH]
