"""A rule's numbers of the answers of a unit: questions without their pictures and answers in, scores out. No model.

What goes wrong with a question or an answer is recorded with it. The first unit is judged by two processes, which must
agree.
"""

import importlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from data_engine import schemas, stages
from data_engine.errors import UserError
from data_engine.pipeline.answers import KEY_AND_TEXT, by_question
from data_engine.pipeline.runner import StageContext, UnitByUnit, UnitWork
from data_engine.rewards import rule as rewards_rule
from data_engine.rules.chosen import Rule
from data_engine.rules.client import Judged, RuleProcess
from data_engine.store import units
from data_engine.store.units import UnitResult

NAME = "rule"
# So many questions that all end at a limit, and no other before: each takes a minute, and the rest would not be other.
HOPELESS = 5

log = logging.getLogger(__name__)

Asked = tuple[Mapping, list[str]]
"""a row without its pictures, and the answers to it"""


def runner(context: StageContext) -> UnitByUnit:
    """The runner of the stage of rules."""
    rules: Mapping[str, Rule] = context.config.source_flags[NAME].value
    work_dir, ruled = Path(context.config.work_dir), {}
    for column, rule in rules.items():
        collected = [] if rule.collects is None else context.column(rule.collects)
        ruled[column] = Ruled(rule, list(collected), work_dir)

    def close() -> None:
        for one in ruled.values():
            one.close()

    return UnitByUnit(lambda work: ruled_unit(ruled, work, context.records(work.number)), close)


def ruled_unit(ruled: Mapping[str, "Ruled"], work: UnitWork, records: Iterable[dict]) -> UnitResult:
    """The scores of the answers of a unit by the rule of each column. Raises UserError as Ruled.judged does."""
    sampled = work.inputs[stages.SAMPLING.name].table
    rows = list(_by_question(sampled, records))
    asked = [(record, [answer["answer"] for answer in answers]) for record, answers in rows]
    judged = {column: one.judged(asked) for column, one in ruled.items()}
    return result([answers for _, answers in rows], judged, sampled.schema.field("idx").type)


class Ruled:
    """A rule at work on units."""

    def __init__(self, rule: Rule, collected: list, work_dir: Path) -> None:
        """`work_dir` tells whether any unit was published."""
        self._rule, self._collected, self._work_dir = rule, collected, work_dir
        self._process = self._new_process()
        self._agreed = False

    def judged(self, asked: Sequence[Asked]) -> list[Judged]:
        """What the rule makes of the answers to each question of a unit.

        Raises UserError for a rule that cannot be imported, that is not deterministic, or of which nothing can come.
        """
        judged = list(self._judged(asked))
        if asked and not self._agreed:
            self._require_agreement(asked, judged)
            self._agreed = True
            self._warn([text for _, answers in asked for text in answers])
        return judged

    def close(self) -> None:
        """End the process of the rule."""
        self._process.close()

    def _new_process(self) -> RuleProcess:
        return RuleProcess(self._rule, rewards_rule.LIMITS, self._collected)

    def _warn(self, answers: list[str]) -> None:
        """Say what a built-in rule has to say of the first answers of a run."""
        if self._rule.module is None or units.published(self._work_dir, NAME):
            return
        warning = getattr(importlib.import_module(self._rule.module), "warning", None)
        if warning is not None and (told := warning(answers)) is not None:
            log.warning("rule %s: %s", self._rule.shown, told)

    def _judged(self, asked: Sequence[Asked]) -> Iterator[Judged]:
        ended = 0
        for record, answers in asked:
            found = self._process.judge(record, answers)
            ended = ended + 1 if found.is_limit else -len(asked)
            if ended == HOPELESS and not units.published(self._work_dir, NAME):
                raise UserError(
                    f'rule "{self._rule.shown}": none of the first {HOPELESS} questions got a number, the last one, '
                    f"idx {record['idx']!r}, because {found.problem}"
                )
            yield found

    def _require_agreement(self, asked: Sequence[Asked], judged: Sequence[Judged]) -> None:
        """Raise UserError where another process, asked in the reverse order, finds anything else."""
        other = self._new_process()
        try:
            for (record, answers), first in zip(reversed(asked), reversed(judged), strict=True):
                if first.is_limit:
                    continue
                second = other.judge(record, answers)
                if not second.is_limit and first != second:
                    raise UserError(
                        f'rule "{self._rule.shown}" is not deterministic: of the same answers to idx '
                        f"{record['idx']!r} it made first {_shown(first)}, then {_shown(second)}. Let its numbers "
                        "depend on the row and the answers alone: no clock, no random numbers without a seed, nothing "
                        "kept from call to call"
                    )
        finally:
            other.close()


def result(rows: Sequence[list[dict]], judged: Mapping[str, Sequence[Judged]], idx_type: pa.DataType) -> UnitResult:
    """The unit's table, of what the rule of each column made of its questions.

    A question of which one of them could judge no answer is left out with the reason, or is missing.
    """
    records, left_out, missing = [], [], []
    for answers, *found in zip(rows, *judged.values(), strict=True):
        problems = [(one.is_missing, problem) for one in found if (problem := _problem(one)) is not None]
        if problems:
            # What stays counts before what may be gone at the next start.
            is_missing, problem = min(problems, key=lambda one: one[0])
            (missing if is_missing else left_out).append((answers[0]["idx"], problem))
            continue
        for place, answer in enumerate(answers):
            scores = {column: one.scores[place] for column, one in zip(judged, found, strict=True)}
            reason = next((one.reasons[place] for one in found if one.reasons[place]), None)
            records.append({"idx": answer["idx"], "sample_index": answer["sample_index"], **scores, "reason": reason})
    return UnitResult(pa.Table.from_pylist(records, schemas.ruled(idx_type, judged)), left_out, missing)


def _problem(found: Judged) -> str | None:
    """Why the answers to a question have no number; None where one of them may have."""
    return found.reasons[0] if found.problem is None and all(found.reasons) else found.problem


def _by_question(sampled: pa.Table, records: Iterable[dict]) -> Iterator[tuple[dict, list[dict]]]:
    """The rows of a unit that have answers, in their order, and these."""
    answers = by_question(sampled, KEY_AND_TEXT)
    return ((record, answers[record["idx"]]) for record in records if record["idx"] in answers)


def _shown(found: Judged) -> str:
    """What a rule made of the answers to a question, cut to what a message takes."""
    if found.problem is not None:
        return f'no numbers ("{found.problem}")'
    entries = zip(found.scores, found.reasons, strict=True)
    return str([score if reason is None else reason for score, reason in entries])[:200]
