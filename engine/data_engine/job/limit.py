"""How many questions of its dataset a run asks, --limit, which may grow from one start to the next.

A unit has the same questions whatever the limit, but for the last one, which the limit may cut short: see
job/published.py. No torch here.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_engine.errors import UserError
from data_engine.plural import plural
from data_engine.questions.dataset import Questions
from data_engine.stages import SAMPLING
from data_engine.store import units
from data_engine.store.sealed import read_facts


def described(questions: Questions, unit_size: int) -> dict[str, int]:
    """The entry "units" of run.json."""
    return {
        "num_questions": len(questions),
        "dataset_rows": questions.num_rows,
        "unit_size": unit_size,
        "num_units": len(units.split_units(len(questions), unit_size)),
    }


def require_reach(work_dir: Path, unit_size: int, num_questions: int) -> None:
    """Raise UserError where units have answers to questions beyond the first `num_questions`."""
    last, length = _last(work_dir)
    there = last * unit_size + length
    if num_questions < there:
        raise UserError(
            f"work_dir {work_dir} has answers to the first {there:,} questions, and this start asks {num_questions:,}: "
            f"limit may grow and not shrink. Give --limit {there} or more, or choose another work_dir"
        )


def require_as_many(work_dir: Path, found: Mapping | None, questions: Questions) -> None:
    """Raise UserError where units of the work_dir are of a dataset with another number of rows; `found` is run.json."""
    there = found and found.get("units", {}).get("dataset_rows")
    if there is not None and there != questions.num_rows:
        raise UserError(
            f"work_dir {work_dir} holds another run: its dataset has {plural(there, 'question')}, this one "
            f"{questions.num_rows:,}. Go on with its dataset, or choose another work_dir"
        )


def require_newest(work_dir: Path, found: Mapping | None, num_questions: int) -> None:
    """Raise UserError where another start has changed how many questions the run asks; `found` is run.json."""
    there = (found or {}).get("units", {}).get("num_questions", num_questions)
    if there != num_questions:
        raise UserError(
            f"another start of work_dir {work_dir} has changed the run meanwhile: num_questions was {num_questions}, "
            f"now {there}. It makes the pairs, and this start makes none"
        )


def cut_short(work_dir: Path, unit_rows: Sequence[range]) -> set[int]:
    """The number of the unit of answers that a smaller limit has cut short, if there is one."""
    last, length = _last(work_dir)
    return {last} if last < len(unit_rows) and 0 < length < len(unit_rows[last]) else set()


def _last(work_dir: Path) -> tuple[int, int]:
    """The number of the last published unit of answers, and how many questions it has; 0, 0 without units."""
    last = max(units.published(work_dir, SAMPLING.name), default=0)
    # One that cannot be read is found and told by a start.
    with contextlib.suppress(OSError, ValueError):
        return last, len(read_facts(units.unit_path(work_dir, SAMPLING.name, last))[0]["rows"])
    return last, 0
