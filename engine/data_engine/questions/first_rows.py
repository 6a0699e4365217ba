"""A look at the first rows of a dataset before any model is loaded: where none can be used, a run would be in vain."""

from collections import Counter
from collections.abc import Iterator, Sequence

from data_engine.errors import BadRow, UserError, kind_of
from data_engine.plural import plural
from data_engine.questions.dataset import Questions, read_images
from data_engine.questions.images import BadImage, Decode

LOOKED_AT = 32


def require_usable(questions: Questions, max_megapixels: float, decode: Decode) -> None:
    """Raise UserError, with the most frequent reason, where none of the first rows can be used.

    Rows are read and decoded until one can be.
    """
    reasons = []
    for problem in _problems(questions, max_megapixels, decode):
        if problem is None:
            return
        reasons.append(problem)
    raise refusal(reasons)


def refusal(reasons: Sequence[str]) -> UserError:
    """What is raised where every row has a reason, with the most frequent one."""
    reason, count = most_frequent(reasons)
    told = none_usable(len(reasons), " of --dataset_path")
    return UserError(f"{told}; the most frequent reason ({plural(count, 'row')}): {reason}")


def none_usable(count: int, of: str = "") -> str:
    """What is said where none of so many first rows can be used, for a reason that follows."""
    return f"none of the first {count:,} rows{of} can be used" if count != 1 else f"the first row{of} cannot be used"


def most_frequent(reasons: Sequence[str]) -> tuple[str, int]:
    """The first reason of the most frequent kind, and how many rows have such: each may name its own file."""
    kind, count = Counter(map(kind_of, reasons)).most_common(1)[0]
    return next(reason for reason in reasons if kind_of(reason) == kind), count


def _problems(questions: Questions, max_megapixels: float, decode: Decode) -> Iterator[str | None]:
    """Why each of the first rows cannot be used, or None."""
    # In this thread: most often one row is enough, and a second thread would start a second worker for the next one.
    for question in questions.rows(range(min(LOOKED_AT, len(questions)))):
        try:
            read_images(question, max_megapixels, decode)
        except (BadRow, BadImage) as problem:
            yield str(problem)
        else:
            yield None
