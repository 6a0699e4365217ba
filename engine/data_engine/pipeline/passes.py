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
from data_engine.questions.dataset import Question, left_out_for
from data_engine.questions.images import BadImage
from data_engine.questions.prefetch import Ahead
from data_engine.scoring.arriving import Arriving
from data_engine.scoring.logprobs import in_groups
from data_engine.store.sealed import Sealed
from data_engine.store.units import AnswerLeftOut, Row, UnitResult

log = logging.getLogger(__name__)

# Questions that are tried, one after the other, where memory does not hold the plain path of one.
MOST_CHECKED = 4


@dataclass(frozen=True)
class Prepared:
    """A question as it comes to a pass: the rows of its answers and its work, or what is wrong with it."""

    question: Question
    rows: list[dict]
    work: Work | None = None
    problem: str | None = None
    left_out: list[AnswerLeftOut] = field(default_factory=list)
    """answers of it that have no row here"""


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
    answers_left_out: list[AnswerLeftOut] = field(default_factory=list)

    def result(self, table: pa.Table) -> UnitResult:
        """The unit, whose numbers are in the table."""
        return UnitResult(
            table, self.quarantined, self.missing, retries=self.retries, answers_left_out=self.answers_left_out
        )


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


@dataclass(frozen=True)
class _Pass:
    """A pass that was launched, and is to be read."""

    unit: _Unit
    together: list[Prepared]
    numbers: Arriving


@dataclass(frozen=True)
class _End:
    """Where the passes of a unit end."""

    unit: _Unit
    error: Exception | None
    """what made it fail"""


class AnswerRunner:
    """Computes numbers of the answers of units, one unit after the other; see runner.StageRunner.

    On a GPU a pass is read after the next one was launched. Once the last one of a unit is launched, another unit is
    wanted, whose first pass is launched before that one is read: the device is at work while a unit is claimed and
    published. A pass is of one unit, so numbers do not depend on it. The ranks of a split model make their calls
    together, and finish a unit before they take another one.
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
        on_gpu = scorer.model.device.type == "cuda"
        # Passes that stay launched while others are read; and whether a unit is begun before the last one is finished.
        self._lag, self._goes_on = int(on_gpu), on_gpu and not split
        # A unit that is submitted; that which is being launched, and its passes; and what is to be read, in order.
        self._next: _Unit | None = None
        self._begun: tuple[_Unit, Iterator[list[Prepared]]] | None = None
        self._launched: deque[_Pass | _End] = deque()

    @property
    def wants_more(self) -> bool:
        return not self._has_to_launch

    def submit(self, work: UnitWork) -> None:
        """One at a time, where `wants_more`."""
        answers = by_question(work.inputs[stages.SAMPLING.name].table)
        asked = ((question, answers[question.idx]) for question in work.questions if question.idx in answers)
        self._next = _Unit(work, Ahead(lambda item: _prepared(self._scorer, *item), asked))
        if self._launched:
            # While the device is at work.
            self._next.prepared.begin()

    def poll(self) -> list[tuple[int, UnitResult]]:
        """Work until a unit is finished, or another one is wanted."""
        while True:
            while self._launched and self._may_read:
                first = self._launched.popleft()
                if isinstance(first, _Pass):
                    self._take(first.unit.found, first.together, iter(first.numbers.read()))
                elif first.error is not None:
                    raise first.error
                else:
                    found = self._finished(first.unit.found)
                    return [(first.unit.work.number, self._result(first.unit.work, found))]
            if not self._has_to_launch:
                return []
            self._launch()
            if self._goes_on and self.wants_more:
                return []

    def close(self) -> None:
        for unit in filter(None, (self._next, self._begun and self._begun[0])):
            unit.prepared.close()
        self._next = self._begun = None
        self._launched.clear()

    @property
    def _has_to_launch(self) -> bool:
        return self._next is not None or self._begun is not None

    @property
    def _may_read(self) -> bool:
        """Whether what was launched first is read now: not the last passes, as long as there is another to launch."""
        in_flight = sum(isinstance(one, _Pass) for one in self._launched)
        return in_flight > self._lag or isinstance(self._launched[0], _End) or not self._has_to_launch

    def _launch(self) -> None:
        """Launch a pass, or end a unit that has no other one."""
        if self._begun is None:
            unit, self._next = self._next, None
            self._begun = unit, in_groups(_usable(unit.prepared, unit.found), _tokens, self._most_tokens)
        unit, passes = self._begun
        error = None
        try:
            together = next(passes, None)
            if together is not None:
                numbers, halved = halving(self._scorer, [one.work for one in together if one.work])
                unit.found.retries += halved
                self._launched.append(_Pass(unit, together, Arriving(numbers)))
                return
        # It is told behind the unit before, which may not be read yet.
        except Exception as problem:
            error = problem
        except BaseException:
            self.close()
            raise
        unit.prepared.close()
        self._begun = None
        self._launched.append(_End(unit, error))

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
    try:
        while not found:
            runner.poll()
    finally:
        runner.close()
    return found[0]


def _prepared(scorer: Scorer, question: Question, rows: list[dict]) -> Prepared:
    try:
        work = scorer.prepare(question, rows)
        if work is None or not work.left_out:
            return Prepared(question, rows, work)
        kept = [row for place, row in enumerate(rows) if place not in work.left_out]
        left_out = [(question.idx, rows[place]["sample_index"], told) for place, told in work.left_out.items()]
        return Prepared(question, kept, work, left_out=left_out)
    except (BadRow, BadImage) as problem:
        return Prepared(left_out_for(question, problem), rows, problem=str(problem))


def _usable(prepared: Iterable[Prepared], left_out: Computed) -> Iterator[Prepared]:
    """Without those that cannot be used, which go to `left_out`."""
    for one in prepared:
        if one.problem:
            where = left_out.missing if one.question.missing else left_out.quarantined
            where.append((one.question.idx, one.problem))
        else:
            left_out.answers_left_out += one.left_out
            yield one


def _tokens(one: Prepared) -> int:
    return one.work.tokens if one.work else 0


def _not_finite(scorer: Scorer, rows: list[dict], result: list[Tensor]) -> str | None:
    """Why a question is left out, where a number of its answers is none."""
    broken = next((row for row, one in zip(rows, result, strict=True) if not one.isfinite().all()), None)
    if broken is None:
        return None
    index = broken["sample_index"]
    return f"the model's {scorer.what} are not finite (NaN or infinite): answer {index}, counted from 0"
