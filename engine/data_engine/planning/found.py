"""What the checks before a run have found so far: mistakes, warnings, and what later checks and the plan go by."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_engine.config import RunConfig
from data_engine.errors import Collected, UserError, apart
from data_engine.flags import FIELD_NAMES
from data_engine.questions.dataset import Questions
from data_engine.questions.given_answers import GivenFacts
from data_engine.store.file_hashes import TooMuchToHash

# What a user has written, such as a path, may have the name of a flag in it.
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
# What is to be mended where a check's message names no flag.
_FLAGS = {
    "dataset": "dataset_path", "first_rows": "dataset_path", "answers": "answers", "answers_rows": "answers",
    "strategy": "strategy", "work_dir": "work_dir", "same_run": "work_dir", "disk": "work_dir",
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A mistake, and the check that came upon it."""

    check: str
    error: UserError

    def as_json(self) -> dict:
        return {
            "check": self.check,
            "flag": flag_in(str(self.error)) or _FLAGS.get(self.check),
            "message": str(self.error),
        }


@dataclass(frozen=True)
class FirstRows:
    """The first rows of the dataset, which stand for the others."""

    looked_at: int
    reasons: tuple[str, ...]
    """why some of them cannot be used"""
    picture_bytes: float = 0.0
    """of the pictures of one question, encoded, on average"""
    text_bytes: float = 0.0
    """of its text"""


@dataclass
class Found:
    """Filled by the checks, in their order."""

    config: RunConfig
    wrong: frozenset[str] = frozenset()
    """fields of the configuration that were refused, or are missing: no check may read them"""
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    """names of checks with a problem, and of those that were left out because of it"""
    formats: list[str] = field(default_factory=list)
    questions: Questions | None = None
    first_rows: FirstRows | None = None
    given: GivenFacts | None = None
    """of --answers"""
    folders: dict[str, Path] = field(default_factory=dict)
    """of the checkpoints whose files are there, by role"""
    families: dict[str, str] = field(default_factory=dict)
    """the same roles"""
    heavy: dict = field(default_factory=dict)
    """what heavy.look told: see there"""

    @property
    def further_columns(self) -> tuple[str, ...] | None:
        """As the configuration's. None of them where the flags of a source are wrong: what it reads is not known."""
        return () if "sources" in self.failed else self.config.further_columns

    def known(self, bound: Mapping) -> dict:
        """Bound values without those of fields that are wrong, in whose place defaults stand."""
        return {name: value for name, value in bound.items() if name not in self.wrong}

    def note(self, check: str, error: UserError) -> None:
        """Each message counts once, whichever checks come upon it."""
        for one in apart(error):
            if str(one) not in {str(known.error) for known in self.problems}:
                self.problems.append(Problem(check, one))
        self.failed.add(check)

    def raise_any(self) -> None:
        """Raise what is wrong: UserError, UserErrors where that is more than one thing."""
        Collected(problem.error for problem in self.problems).raise_any()

    @contextlib.contextmanager
    def noting(self, check: str) -> Iterator[None]:
        """Inside, a UserError is noted, and ends the block alone."""
        try:
            yield
        except UserError as error:
            self.note(check, error)


@contextlib.contextmanager
def telling_unread(work_dir: Path, what: str, warnings: list[str]) -> Iterator[None]:
    """Inside, content that is too large to be read by a check adds a warning, and ends the block alone."""
    try:
        yield
    except TooMuchToHash as size:
        warnings.append(
            f'whether {what} are those of the units in "{work_dir}" was not looked at, which takes reading {size}; run '
            "does so"
        )


def flag_in(message: str) -> str | None:
    """The flag that a message is about; None where it names none.

    It is the first word, or written with its dashes, or a name that is no word of English, as dataset_path is.
    """
    told = _QUOTED.sub("", message)
    first, dashed, joined = re.match(r"\w+", told), re.findall(r"--(\w+)", told), re.findall(r"\w+_\w+", told)
    words = [*([first[0]] if first else []), *dashed, *joined]
    return next((word for word in words if word in FIELD_NAMES), None)
