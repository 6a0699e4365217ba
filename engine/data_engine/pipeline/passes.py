"""The runner of a stage that computes something of the answers to each question: questions in, numbers out.

Questions of a unit go through the model together, as far as a pass has room. A question that cannot be used is left out
with its reason. What is computed, and how, a Scorer knows.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from torch import Tensor

from data_engine import stages
from data_engine.errors import NO_ROOM, OUT_OF_MEMORY, BadRow, UserError
from data_engine.models.memory_errors import naming_out_of_memory
from data_engine.pipeline.answers import by_question
from data_engine.pipeline.runner import UnitWork
from data_engine.pipeline.works import Scorer, Work, halving
from data_engine.questions.dataset import Question
from data_engine.questions.images import BadImage
from data_engine.questions.prefetch import Ahead
from data_engine.scoring.arriving import read_behind
from data_engine.scoring.logprobs import in_groups
from data_engine.store.sealed import Sealed
from data_engine.store.units import Row, UnitResult

log = logging.getLogger(__name__)

# Questions that are tried, one after the other, where memory does not hold the plain path of one.
MOST_CHECKED = 4
# Of each question of a pass, numbers of its answers; None: memory does not hold one of them.
Numbers = list[list[Tensor] | None]


@dataclass(frozen=True)
class Prepared:
    """A question as it comes to a pass: the rows of its answers and its work, or what is wrong with it."""

    question: Question
    rows: list[dict]
    work: Work | None = None
    problem: str | None = None
    left_out: list[str] = field(default_factory=list)
    """why some of its answers, which have no row here, are left out"""


@dataclass
class Computed:
    """What a unit comes to."""

    scored: list[tuple[dict, Tensor | None]] = field(default_factory=list)
    """each answer's row and what was computed and counts; None where there is no number of it"""
    quarantined: list[Row] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    retries: int = 0
    too_large: list[Row] = field(default_factory=list)
    """of those left out, the ones that memory does not hold"""


class PlainCheck:
    """Holds the first question with sound numbers against the plain path, over all units of a runner."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self._left = scorer, MOST_CHECKED

    def hold(self, question: Question, work: Work, found: list[Tensor]) -> None:
        """Does nothing once a question has been held. Raises RuntimeError where numbers differ by more than rounding.

        A question whose plain path exceeds the memory, which whole rows may where shared ones do not, is passed over.
        """
        if not self._left or self._scorer.model.why_plain:
            return
        try:
            with naming_out_of_memory(self._scorer.model):
                self._scorer.check(work, found)
            self._left = 0
            return
        except torch.OutOfMemoryError:
            # Outside the handler, whose traceback would keep the tensors.
            pass
        self._left -= 1
        if self._scorer.model.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "out of memory: the %s of row %r are not held against the plain path%s", self._scorer.what, question.idx,
            "; those of another one are" if self._left else ", nor are any others",
        )  # fmt: skip


@dataclass
class _Unit:
    """A unit in the making."""

    work: UnitWork
    prepared: Ahead[Prepared]
    found: Computed = field(default_factory=Computed)


# A pass of a unit: its questions. Behind its last one: None, or what made the unit fail.
_Pass = tuple[_Unit, list[Prepared] | Exception | None]


class AnswerRunner:
    """Computes numbers of the answers of units, one unit after the other; see runner.StageRunner.

    On a GPU it has the next unit in hand: the first pass of that one is launched before the last of this one is read,
    so that the device is at work while a unit is published and another one claimed. A pass is of one unit, so numbers
    do not depend on it. The ranks of a split model make their calls together, and keep to one unit.
    """

    def __init__(
        self,
        scorer: Scorer,
        most_tokens: int,
        result: Callable[[UnitWork, Computed], UnitResult],
        *,
        check: bool = True,
        split: bool = False,
    ) -> None:
        """A pass has questions of up to `most_tokens` tokens, one at least; `result` makes a unit of what they come to.

        With `check`, the first question with sound numbers is held against the plain path, and UserError is raised
        where memory holds no question of the units until then.
        """
        self._scorer, self._most_tokens, self._result = scorer, most_tokens, result
        self._check, self._none_yet = PlainCheck(scorer) if check else None, check
        self._at_once = 2 if scorer.model.device.type == "cuda" and not split else 1
        # In hand; and those of them that no pass was made of.
        self._units: deque[_Unit] = deque()
        self._waiting: deque[_Unit] = deque()
        self._passes: Iterator[tuple[_Pass, Numbers]] = iter(())

    @property
    def wants_more(self) -> bool:
        return len(self._units) < self._at_once

    def submit(self, work: UnitWork) -> None:
        answers = by_question(work.inputs[stages.SAMPLING.name].table)
        asked = ((question, answers[question.idx]) for question in work.questions if question.idx in answers)
        unit = _Unit(work, Ahead(lambda item: _prepared(self._scorer, *item), asked))
        if self._units:
            # While the model is at work on another one.
            unit.prepared.begin()
        self._units.append(unit)
        self._waiting.append(unit)

    def poll(self) -> list[tuple[int, UnitResult]]:
        """Work up to the end of a unit."""
        while self._units:
            for (unit, together), numbers in self._passes:
                if isinstance(together, list):
                    self._take(unit.found, together, iter(numbers))
                    continue
                self._units.remove(unit)
                if together is not None:
                    raise together
                return [(unit.work.number, self._result(unit.work, self._finished(unit.found)))]
            # There was no other unit; now there is.
            self._passes = read_behind(self._launched(), self._scorer.model.device)
        return []

    def close(self) -> None:
        for unit in self._units:
            unit.prepared.close()
        self._units.clear()
        self._waiting.clear()
        self._passes = iter(())

    def _launched(self) -> Iterator[tuple[_Pass, Numbers]]:
        while self._waiting:
            unit = self._waiting.popleft()
            try:
                usable = _usable(unit.prepared, unit.found)
                for together in in_groups(usable, lambda one: one.work.tokens if one.work else 0, self._most_tokens):
                    numbers, halved = halving(self._scorer, [one.work for one in together if one.work])
                    unit.found.retries += halved
                    yield (unit, together), numbers
            # The unit before it may not be read yet.
            except Exception as error:
                yield (unit, error), []
                return
            yield (unit, None), []

    def _take(self, found: Computed, together: list[Prepared], numbers: Iterator[list[Tensor] | None]) -> None:
        """What a pass came to, in the order of its questions."""
        for one in together:
            if one.work is None:
                found.scored += ((row, None) for row in one.rows)
                continue
            result = next(numbers)
            if result is None:
                found.too_large.append((one.question.idx, OUT_OF_MEMORY))
                continue
            if reason := _not_finite(self._scorer, one.rows, result):
                found.quarantined.append((one.question.idx, reason))
                continue
            if self._check:
                self._check.hold(one.question, one.work, result)
            found.scored += zip(one.rows, one.work.counted(result), strict=True)

    def _finished(self, found: Computed) -> Computed:
        if self._none_yet and found.too_large and not found.scored:
            raise UserError(NO_ROOM)
        self._none_yet = self._none_yet and all(number is None for _, number in found.scored)
        found.quarantined += found.too_large
        return found


def compute_unit(
    scorer: Scorer, questions: Iterable[Question], sampled: pa.Table, most_tokens: int, check: bool = False
) -> Computed:
    """What `scorer` computes of all answers of one unit, in their order; see AnswerRunner."""
    found: list[Computed] = []
    runner = AnswerRunner(scorer, most_tokens, lambda work, computed: found.append(computed), check=check)
    runner.submit(UnitWork(0, questions, {stages.SAMPLING.name: Sealed(sampled)}))
    runner.poll()
    return found[0]


def _prepared(scorer: Scorer, question: Question, rows: list[dict]) -> Prepared:
    try:
        work = scorer.prepare(question, rows)
        if work is None or not work.left_out:
            return Prepared(question, rows, work)
        kept = [row for place, row in enumerate(rows) if place not in work.left_out]
        return Prepared(question, kept, work, left_out=list(work.left_out.values()))
    except (BadRow, BadImage) as problem:
        return Prepared(question, rows, problem=str(problem))


def _usable(prepared: Iterable[Prepared], left_out: Computed) -> Iterator[Prepared]:
    """Without those that cannot be used, which go to `left_out`."""
    for one in prepared:
        if one.problem:
            where = left_out.missing if one.question.missing else left_out.quarantined
            where.append((one.question.idx, one.problem))
        else:
            left_out.quarantined += ((one.question.idx, reason) for reason in one.left_out)
            yield one


def _not_finite(scorer: Scorer, rows: list[dict], result: list[Tensor]) -> str | None:
    """Why a question is left out, where a number of its answers is none."""
    broken = next((row for row, one in zip(rows, result, strict=True) if not one.isfinite().all()), None)
    if broken is None:
        return None
    index = broken["sample_index"]
    return f"the model's {scorer.what} are not finite (NaN or infinite): answer {index}, counted from 0"
