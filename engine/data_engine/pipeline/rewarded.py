"""The answers of a unit with their rewards and their places in the rankings: the files of every stage in, rows out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_engine import errors, stages
from data_engine.preferences.answers import Answers, best_first, places_of
from data_engine.preferences.strategies import shortened
from data_engine.preferences.word_count import count_words
from data_engine.rewards import VALUES, AnswerError, RewardSettings, StageColumns
from data_engine.schemas import IMPLICIT_ONLY, reward_name
from data_engine.stages import RunStages, Source
from data_engine.store.made_from import read_with_inputs, require_questions
from data_engine.store.sealed import Sealed
from data_engine.tables import load

KEY = ("idx", "sample_index")
ANSWER = (*KEY, "answer")


@dataclass(frozen=True)
class Stored:
    """Where the answers of a run are, and what is known of them."""

    work_dir: Path
    num_units: int
    idx_type: pa.DataType
    bound: Mapping
    """what the units were computed from, by name"""
    markers: tuple[str, ...]
    """texts of the prompt format"""
    same_tokenizer: bool
    """all models scored the same token ids"""
    run_stages: RunStages = field(default_factory=RunStages)
    order: Callable[[int], Sequence] | None = None
    """number of a unit -> idx of its questions; None: in the order in which the unit has their answers"""

    @property
    def rewards(self) -> tuple[str, ...]:
        """What the reward columns of the run are called in tables."""
        return tuple(map(reward_name, self.run_stages.columns))


@dataclass(frozen=True)
class RewardedUnit:
    """The answers of a unit, in the order of the questions and of sample_index, whatever that of the files is."""

    table: pa.Table
    """idx, sample_index, answer and what else was asked for, a row an answer"""
    spans: list[tuple[int | str, int, int]]
    """idx of each question that has answers, the row of its first answer, and that behind its last"""
    rewards: dict[str, np.ma.MaskedArray]
    """float64 [answers] by schemas.reward_name of each column: masked where its source has nothing of the answer, NaN
    where it has no finite number"""
    num_left_out: int
    """questions that a stage left out"""
    num_turned: int
    """pictures that were turned upright"""

    def questions(self) -> Iterator[Answers]:
        """The answers of each question."""
        indexes, texts = (self.table[name].to_pylist() for name in ("sample_index", "answer"))
        rewards = {name: column.tolist() for name, column in self.rewards.items()}
        for idx, start, end in self.spans:
            own = {name: column[start:end] for name, column in rewards.items()}
            yield Answers(idx, indexes[start:end], texts[start:end], own)


def read_rewarded(stored: Stored, unit: int, beta: float, columns: Sequence[str] = ANSWER) -> RewardedUnit:
    """The answers of a unit, of which `columns` are read, with the rewards of every source of the run.

    Raises DamagedUnitError for a unit that must be computed again, UserError for one of other values than those of
    `stored.bound`, for an answer to another question, and for two of a question with the same sample_index.
    """
    read = _read_stages(stored, unit)
    sampled = read[stages.SAMPLING.name].table.select(list(columns))
    order = stored.order(unit) if stored.order else list(dict.fromkeys(sampled["idx"].to_pylist()))
    if stored.order and len(read[stages.SAMPLING.name].facts["rows"]) > len(order):
        # By a larger --limit than that of the pairing it has got more questions since.
        sampled = sampled.filter(pc.is_in(sampled["idx"], pa.array(order, stored.idx_type)))
    table, spans = _by_question(sampled, unit, order)
    settings, rewards = RewardSettings(beta, stored.same_tokenizer), {}
    for source in stored.run_stages.sources:
        try:
            rewards |= _rewards_of(stored.run_stages.source(source), read, table, settings)
        except AnswerError as error:
            idx, index = (table[column][error.place].as_py() for column in KEY)
            raise ValueError(f"unit {unit}, idx {idx!r}, sample_index {index}: {error}") from error
    facts = [one.facts for one in read.values()]
    left_out = {idx for told in facts for name in ("left_out", "missing") for idx, _ in told.get(name, ())}
    turned = read[stages.SAMPLING.name].facts.get("turned", 0)
    return RewardedUnit(table, spans, rewards, len(left_out), turned)


def scored_rows(
    rows: Iterable[Mapping],
    answers: Answers,
    reasons: Sequence[str | None],
    rank_by: Sequence[str],
    alpha: float = 0.0,
) -> Iterator[dict]:
    """The answers of a question with their rewards, their places in the rankings, from 1, and why others have none.

    `rows` are those answers as they were sampled, `rank_by` the names of the rewards that rank, and `alpha` is what
    each word of an answer takes off.
    """
    ranked = places_of(reasons)
    words = [count_words(answers.texts[place]) for place in ranked] if alpha else []
    columns = shortened([[answers.rewards[name][place] for place in ranked] for name in rank_by], words, alpha)
    ranks = {
        f"{IMPLICIT_ONLY.get(name, name)}_rank": {
            ranked[place]: rank for rank, place in enumerate(best_first(column), 1)
        }
        for name, column in zip(rank_by, columns, strict=True)
    }
    rewards = {IMPLICIT_ONLY.get(name, name): column for name, column in answers.rewards.items()}
    for place, row in enumerate(rows):
        numbers = {name: column[place] for name, column in rewards.items()}
        yield {
            **row,
            **numbers,
            **{name: rank.get(place) for name, rank in ranks.items()},
            "not_ranked": reasons[place],
        }


def _read_stages(stored: Stored, unit: int) -> dict[str, Sealed]:
    """The unit of each stage, by name; each was computed from those that it needs."""
    read: dict[str, Sealed] = {}
    for stage in stored.run_stages.by_name.values():
        inputs = {name: read[name] for name in stage.needs}
        read[stage.name] = read_with_inputs(stored.work_dir, stage, unit, stored.bound, inputs)
        if stored.order and stage.step == stages.SAMPLE:
            require_questions(stored.work_dir, unit, read[stage.name], len(stored.order(unit)))
    return read


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
) -> dict[str, np.ma.MaskedArray]:
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
        columns[reward_name(name)] = column = np.ma.masked_all(len(answers))
        if name in found:
            column[places] = found[name]
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
