"""How well each source of reward tells true answers from false ones, by the tiny world's truth: areas under the ROC.

In: a run's work directory and the truth beside its questions. Out: a printed table. An area is the share of the pairs
(a true and a false answer to the same question) in which the true one has the higher reward, ties counting half.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine.demo import world
from data_engine.demo.judge import truth_path
from data_engine.rewards import VALUES, RewardSettings, StageColumns
from data_engine.stages import SAMPLING, RunStages
from data_engine.tables import load

KEY = ("idx", "sample_index")


def is_true(answer: str, names: tuple[str, ...]) -> bool | None:
    """Whether all that an answer says of objects is so; None where it says nothing.

    By looking for the names of all objects there are, not by reading captions.
    """
    said = [name for name in world.NAMES if name in answer]
    if said:
        # A caption that names an object twice says that there are two.
        return all(name in names and answer.count(name) == 1 for name in said)
    counts = [number for number, word in enumerate(world.NUMBERS) if f"{word} object" in answer]
    return counts == [len(names)] if counts else None


def rewards_of(work_dir: Path) -> dict[tuple, dict[str, float]]:
    """By idx and sample_index, the reward columns of an answer that all sources of the run have numbers of."""
    config = json.loads((work_dir / "run.json").read_text())["config"]
    settings, found = RewardSettings(config["beta"], True), {}
    run_stages = RunStages.of(config)
    for name in run_stages.sources:
        source = run_stages.source(name)
        stages = [stage.name for stage in source.stages]
        tables = _together([pq.read_table(sorted((work_dir / stage).glob("unit-*.parquet"))) for stage in stages])
        computed = {stage: StageColumns(table) for stage, table in zip(stages, tables, strict=True)}
        columns = load(source.rewards)(computed, settings)
        keys = list(zip(*(tables[0][column].to_pylist() for column in KEY), strict=True))
        found |= {column: dict(zip(keys, values.tolist(), strict=True)) for column, values in columns.items()}
    keys = set.intersection(*(set(values) for values in found.values()))
    return {key: {column: values[key] for column, values in found.items()} for key in sorted(keys)}


def _together(tables: list[pa.Table]) -> list[pa.Table]:
    """The rows of the answers that every table has a number of, in one order."""
    tables = [_with_numbers(table).sort_by([(name, "ascending") for name in KEY]) for table in tables]
    keys = [list(zip(*(table[name].to_pylist() for name in KEY), strict=True)) for table in tables]
    common = set.intersection(*map(set, keys))
    kept = ([place for place, key in enumerate(one) if key in common] for one in keys)
    return [table.take(places) for table, places in zip(tables, kept, strict=True)]


def _with_numbers(table: pa.Table) -> pa.Table:
    for name in set(VALUES) & set(table.column_names):
        table = table.filter(pc.is_valid(table[name]))
    return table


@dataclass(frozen=True)
class Pair:
    """A true and a false answer to a question, by their rewards."""

    true: Mapping[str, float]
    false: Mapping[str, float]

    def is_right(self, column: str) -> float:
        """1 where the true answer has the higher reward, 0 where the false one has, 0.5 for a tie."""
        difference = self.true[column] - self.false[column]
        return 0.5 + 0.5 * float(np.sign(difference))


def pairs_of(work_dir: Path, questions: Path) -> Iterator[Pair]:
    """The pairs of true and false answers to the same question, each text once."""
    truth = {row["idx"]: tuple(row["objects"]) for row in pq.read_table(truth_path(questions)).to_pylist()}
    sampled = pq.read_table(sorted((work_dir / SAMPLING.name).glob("unit-*.parquet")), columns=[*KEY, "answer"])
    answers = {(row["idx"], row["sample_index"]): row["answer"] for row in sampled.to_pylist()}
    rewards = rewards_of(work_dir)
    for idx, keys in itertools.groupby(rewards, key=lambda key: key[0]):
        distinct = {answers[key]: rewards[key] for key in reversed(list(keys))}
        sides = {True: [], False: []}
        for answer, values in distinct.items():
            verdict = is_true(answer, truth[idx])
            if verdict is not None and all(map(math.isfinite, values.values())):
                sides[verdict].append(values)
        yield from itertools.starmap(Pair, itertools.product(sides[True], sides[False]))


def table(pairs: list[Pair], ranking: tuple[str, ...]) -> str:
    """The areas of all columns, and how far each two of `ranking` agree, as text."""
    lines = [f"{len(pairs)} pairs of a true and a false answer to the same question", f"{'reward':34}{'area':>8}"]
    lines += [f"{column:34}{_mean(pair.is_right(column) for pair in pairs):>8.3f}" for column in pairs[0].true]
    lines.append(f"{'two that agree':34}{'area':>8}{'share':>8}")
    for one, other in itertools.combinations(ranking, 2):
        agreeing = [pair for pair in pairs if pair.is_right(one) == pair.is_right(other) != 0.5]
        share, area = len(agreeing) / len(pairs), _mean(pair.is_right(one) for pair in agreeing)
        lines.append(f"{f'{one} and {other}':34}{area:>8.3f}{share:>8.1%}")
    return "\n".join(lines)


def _mean(values: Iterator[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def print_areas(work_dir: Path, questions: Path) -> None:
    """Print the table of a run's sources."""
    pairs = list(pairs_of(work_dir, questions))
    if not pairs:
        print("no question has both a true and a false answer")
        return
    columns = tuple(pairs[0].true)
    averages = tuple(column for column in columns if column.endswith(".avg") or "." not in column)
    print(table(pairs, averages))
