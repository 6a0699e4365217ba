"""The answers of a unit with their rewards and their places in the rankings: the files of every stage in, rows out."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_engine import errors, stages
from data_engine.preferences import strategies
from data_engine.rewards import NOT_SCORED, Rewards, RewardSettings
from data_engine.stages import RunStages
from data_engine.store.made_from import read_with_inputs
from data_engine.store.sealed import Sealed
from data_engine.tables import load

REWARDS = tuple(field.name for field in dataclasses.fields(Rewards))
RANKED_BY = ("sum", "avg")


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


def rewarded(
    read: Mapping[str, Sealed],
    unit: int,
    order: list,
    settings: RewardSettings,
    columns: Sequence[str] = ("idx", "sample_index", "answer"),
) -> Iterator[tuple[int | str, list[dict]]]:
    """Each question of a unit that has answers, its idx and they with their rewards, in the order of the questions.

    `columns` of the sampled answers are in the rows.
    """
    # The first source ranks; a run has one so far.
    source = next(one for one in stages.SOURCES.values() if all(stage.name in read for stage in one.stages))
    rewards = load(source.rewards)
    computed = {stage.name: _column(read[stage.name].table) for stage in source.stages}
    rows = []
    for row in read[stages.SAMPLING.name].table.select(list(columns)).to_pylist():
        key = (row["idx"], row["sample_index"])
        found = {name: column[key] for name, column in computed.items() if key in column}
        try:
            result = rewards(found, settings) if len(found) == len(computed) else NOT_SCORED
        except ValueError as error:
            raise ValueError(f"unit {unit}, idx {key[0]!r}, sample_index {key[1]}: {error}") from error
        rows.append(row | {name: getattr(result, name) for name in REWARDS})
    groups = strategies.by_idx(rows)
    unknown = groups.keys() - set(order)
    if unknown:
        raise errors.UserError(
            f"unit {unit} of sampled_answer has answers to idx {min(map(repr, unknown))}, which is not among its "
            "questions; was the work directory made from another dataset?"
        )
    return ((idx, groups[idx]) for idx in order if idx in groups)


def with_places(answers: Sequence[Mapping], ranked: Sequence[Mapping], reasons: Mapping[int, str]) -> Iterator[dict]:
    """The answers of a question with their places in the rankings, counted from 1, and why others have none."""
    places = {
        f"{by}_rank": {row["sample_index"]: place for place, row in enumerate(strategies.ranking(ranked, by), 1)}
        for by in RANKED_BY
    }
    for row in answers:
        index = row["sample_index"]
        yield {**row, **{by: place.get(index) for by, place in places.items()}, "not_ranked": reasons.get(index)}


def _column(table: pa.Table) -> dict[tuple, np.ndarray]:
    """(idx, sample_index) -> what a stage computed of an answer, its token log-probs or its score as an array.

    Rows are matched by these keys, never by their position.
    """
    table = table.combine_chunks()
    keys = zip(table["idx"].to_pylist(), table["sample_index"].to_pylist(), strict=True)
    if "score" in table.column_names:
        scores = zip(keys, table["score"].to_pylist(), strict=True)
        return {key: np.array([score]) for key, score in scores if score is not None}
    return {key: value.values.to_numpy() for key, value in zip(keys, table["token_logps"], strict=True)}
