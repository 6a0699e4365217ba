"""The answers of a unit with their rewards and their places in the rankings: the files of every stage in, rows out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_engine import errors, stages
from data_engine.preferences import strategies
from data_engine.rewards import VALUES, AnswerError, RewardSettings, StageColumns
from data_engine.stages import RunStages, Source
from data_engine.store.made_from import read_with_inputs
from data_engine.store.sealed import Sealed
from data_engine.tables import load

KEY = ("idx", "sample_index")


@dataclass(frozen=True)
class RewardColumn:
    """A reward of each answer of a unit, in their order."""

    values: np.ndarray
    """float64 [answers]; NaN where there is no finite number"""
    scored: np.ndarray
    """bool [answers]: whether its source has anything of the answer"""

    def to_pylist(self) -> list[float | None]:
        """None where the answer is not scored."""
        return [
            value if scored else None
            for value, scored in zip(self.values.tolist(), self.scored.tolist(), strict=True)
        ]  # fmt: skip


@dataclass(frozen=True)
class RewardedUnit:
    """The answers of a unit, in the order of the questions and of sample_index, whatever that of the files is."""

    answers: pa.Table
    """idx, sample_index and what else was asked for"""
    spans: list[tuple[int | str, int, int]]
    """idx of each question that has answers, the place of its first answer, and that behind its last"""
    rewards: dict[str, RewardColumn]
    """by the full name of the column"""


def read_stages(work_dir: Path, unit: int, bound: Mapping, run_stages: RunStages) -> dict[str, Sealed]:
    """The unit of each stage, by name; each was computed from those that it needs.

    Raises DamagedUnitError for one that must be computed again, UserError for one of other values than `bound`.
    """
    read: dict[str, Sealed] = {}
    for stage in run_stages.by_name.values():
        inputs = {name: read[name] for name in stage.needs}
        read[stage.name] = read_with_inputs(work_dir, stage, unit, bound, inputs)
    return read


def left_out(read: Iterable[Sealed]) -> set:
    """The idx of the questions of a unit that a stage left out."""
    return {idx for unit in read for name in ("left_out", "missing") for idx, _ in unit.facts.get(name, ())}


def rewarded_unit(
    read: Mapping[str, Sealed],
    unit: int,
    order: Sequence,
    settings: RewardSettings,
    sources: Sequence[str],
    columns: Sequence[str] = (*KEY, "answer"),
) -> RewardedUnit:
    """The answers of a unit with the rewards of these sources; `order` are the idx of its questions.

    Raises UserError for an answer to another question, and for two of a question with the same sample_index.
    """
    answers, spans = _by_question(read[stages.SAMPLING.name].table.select(list(columns)), unit, order)
    rewards: dict[str, RewardColumn] = {}
    for name in sources:
        source = stages.SOURCES[name]
        try:
            rewards |= _rewards_of(source, read, answers, settings)
        except AnswerError as error:
            idx, index = (answers[column][error.place].as_py() for column in KEY)
            raise ValueError(f"unit {unit}, idx {idx!r}, sample_index {index}: {error}") from error
    return RewardedUnit(answers, spans, rewards)


def rewarded(
    read: Mapping[str, Sealed],
    unit: int,
    order: Sequence,
    settings: RewardSettings,
    columns: Sequence[str] = (*KEY, "answer"),
) -> Iterator[tuple[int | str, list[dict]]]:
    """Each question of a unit that has answers, its idx and they with their rewards, in the order of the questions.

    `columns` of the sampled answers are in the rows.
    """
    # The first source ranks; a run has one so far.
    known = stages.SOURCES.items()
    source = next(name for name, one in known if all(stage.name in read for stage in one.stages))
    found = rewarded_unit(read, unit, order, settings, (source,), columns)
    rows = found.answers.to_pylist()
    names = {"sum": 0, "avg": 1, "min": 2, "last": 3} if source == "implicit" else {"sum": 0, "avg": 0}
    values = [column.to_pylist() for column in found.rewards.values()]
    none = [None] * len(rows)
    rewards = {name: values[names[name]] if name in names else none for name in ("sum", "avg", "min", "last")}
    for place, row in enumerate(rows):
        row |= {name: column[place] for name, column in rewards.items()}
    return ((idx, rows[start:end]) for idx, start, end in found.spans)


def with_places(answers: Sequence[Mapping], ranked: Sequence[Mapping], reasons: Mapping[int, str]) -> Iterator[dict]:
    """The answers of a question with their places in the rankings, counted from 1, and why others have none."""
    places = {
        f"{by}_rank": {row["sample_index"]: place for place, row in enumerate(strategies.ranking(ranked, by), 1)}
        for by in ("sum", "avg")
    }
    for row in answers:
        index = row["sample_index"]
        yield {**row, **{by: place.get(index) for by, place in places.items()}, "not_ranked": reasons.get(index)}


def _by_question(answers: pa.Table, unit: int, order: Sequence) -> tuple[pa.Table, list[tuple[int | str, int, int]]]:
    """The answers by question and sample_index, and the spans of the questions."""
    number = {idx: place for place, idx in enumerate(order)}
    idxs = answers["idx"].to_pylist()
    unknown = set(idxs) - number.keys()
    if unknown:
        raise errors.UserError(
            f"unit {unit} of sampled_answer has answers to idx {min(map(repr, unknown))}, which is not among its "
            "questions; was the work directory made from another dataset?"
        )
    questions = np.fromiter(map(number.__getitem__, idxs), np.int64, len(idxs))
    indexes = answers["sample_index"].to_numpy().astype(np.int64)
    places = np.lexsort((indexes, questions))
    if (places[1:] < places[:-1]).any():
        answers, questions, indexes = answers.take(pa.array(places)), questions[places], indexes[places]
    same = (questions[1:] == questions[:-1]) & (indexes[1:] == indexes[:-1])
    for place in np.flatnonzero(same)[:1].tolist():
        raise errors.UserError(
            f"unit {unit} of sampled_answer: idx {order[questions[place]]!r} has two answers with sample_index "
            f"{indexes[place]}; number the answers of a question 0, 1, 2, ..."
        )
    starts = np.flatnonzero(np.diff(questions, prepend=-1)).tolist()
    spans = zip(starts, [*starts[1:], len(questions)], strict=False)
    return answers, [(order[questions[start]], start, end) for start, end in spans]


def _rewards_of(
    source: Source, read: Mapping[str, Sealed], answers: pa.Table, settings: RewardSettings
) -> dict[str, RewardColumn]:
    tables = {stage.name: _aligned(read[stage.name].table, answers) for stage in source.stages}
    there = np.ones(len(answers), bool)
    for table in tables.values():
        for name in ("idx", *VALUES):
            if name in table.column_names:
                there &= pc.is_valid(table[name]).to_numpy()
    places = np.flatnonzero(there)
    if len(places) < len(answers):
        tables = {name: table.take(pa.array(places)) for name, table in tables.items()}
    try:
        found = load(source.rewards)({name: StageColumns(table) for name, table in tables.items()}, settings)
    except AnswerError as error:
        raise AnswerError(int(places[error.place]), str(error)) from error
    columns = {}
    for name in source.columns:
        values, scored = np.full(len(answers), np.nan), np.zeros(len(answers), bool)
        if name in found:
            values[places], scored[places] = found[name], True
        columns[name] = RewardColumn(values, scored)
    return columns


def _aligned(table: pa.Table, answers: pa.Table) -> pa.Table:
    """The rows of a stage in the order of the answers; of an answer that it has none of, a row of nulls.

    Rows are matched by idx and sample_index, never by their position.
    """
    if all(table[name].equals(answers[name]) for name in KEY):
        return table
    keys = zip(*(table[name].to_pylist() for name in KEY), strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    wanted = zip(*(answers[name].to_pylist() for name in KEY), strict=True)
    return table.take(pa.array([row_of.get(key) for key in wanted], pa.int64()))
