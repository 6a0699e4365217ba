"""Stage 2: the answers and their log-probs in, pairs/pairs.parquet and dataset/ out.

Memory is bounded: one unit at a time, and a few bytes of each candidate pair. Everything is recomputed on every call,
and published only when it is complete: the dataset first, then the pairs, which carry the settings.
"""

import contextlib
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine import errors, exports, schemas, stages
from data_engine.exports.base import KeptPairs, Written
from data_engine.preferences import filters, strategies
from data_engine.preferences.candidates import NO_SOURCE, CandidateTable
from data_engine.preferences.counts import Funnel
from data_engine.preferences.word_count import count_words
from data_engine.questions.dataset import Questions
from data_engine.questions.images import Exif
from data_engine.rewards import NOT_SCORED, Rewards, RewardSettings, implicit
from data_engine.store import units
from data_engine.store.folders import move_in, scratch_folder
from data_engine.store.made_from import read_with_inputs
from data_engine.store.sealed import Sealed
from data_engine.tables import load

PAIRS_FILE = Path("pairs", "pairs.parquet")
REWARDS = tuple(field.name for field in dataclasses.fields(Rewards))


@dataclass(frozen=True)
class Settings:
    """What the pairs depend on besides the answers; kept in the metadata of pairs.parquet."""

    rank: int
    distance: int
    beta: float
    seed: int


def run(
    work_dir: Path,
    questions: Questions,
    unit_ranges: list[range],
    *,
    rank: int,
    distance: int,
    beta: float,
    seed: int,
    markers: tuple[str, ...],
    same_tokenizer: bool,
    debug: bool,
    bound: Mapping,
    exif: Exif = "apply",
    run_stages: stages.RunStages | None = None,
) -> Funnel:
    """Pair all answers of `work_dir` and publish the dataset.

    Raises IncompleteError where units are missing, DamagedUnitError for one that must be computed again, UserError for
    one that was computed from other values than those of `bound`, or from other rows than `questions`.
    """
    run_stages = run_stages or stages.RunStages()
    require_units(work_dir, len(unit_ranges), run_stages)
    settings = Settings(rank, distance, beta, seed)
    reward_settings = RewardSettings(beta, same_tokenizer)
    with scratch_folder(work_dir, "pairing") as scratch:
        debug_rows = _json_rows(scratch / "rewards.json") if debug else contextlib.nullcontext(_ignore)
        funnel = Funnel(questions=len(questions))
        candidates = CandidateTable(scratch / "candidates.parquet", schemas.pairs(questions.idx_type), seed)
        with candidates, debug_rows as add_row:
            for unit, rows in enumerate(unit_ranges):
                read = _read(work_dir, unit, bound, run_stages)
                funnel.quarantined += len(_left_out(read.values()))
                funnel.turned += read[stages.SAMPLING.name].facts.get("turned", 0)
                for idx, answers in _answers(read, unit, questions.idx[rows.start : rows.stop], reward_settings):
                    candidates.add(idx, _pair_question(answers, settings, markers, funnel, add_row))
        candidates.filter_dataset()
        kept = KeptPairs(candidates, questions, unit_ranges, work_dir, seed, exif)
        written = exports.export(exports.DEFAULT, kept, work_dir / "dataset", scratch)
        candidates.drop(written.without_source)
        _count(funnel, candidates, written)
        if debug:
            move_in(scratch / "rewards.json", work_dir / "debug/rewards.json")
            _write_debug_pairs(scratch / "pairs.json", candidates)
            move_in(scratch / "pairs.json", work_dir / "debug/pairs.json")
        _write_pairs(scratch / "pairs.parquet", candidates, settings, funnel)
        move_in(scratch / "pairs.parquet", work_dir / PAIRS_FILE)
    return funnel


def read_funnel(work_dir: Path) -> Funnel:
    """The funnel of the pairing that wrote pairs.parquet."""
    return Funnel.from_json(pq.read_schema(work_dir / PAIRS_FILE).metadata[b"funnel"].decode())


def require_units(work_dir: Path, num_units: int, run_stages: stages.RunStages) -> None:
    """Raise IncompleteError, listing the missing units by stage, unless every unit is published."""
    lines = []
    for stage in run_stages.by_name:
        missing = units.missing(work_dir, stage, range(num_units))
        if missing:
            lines.append(f"{stage}: {units.compressed(missing)}")
    if lines:
        raise errors.IncompleteError(
            f"pairing needs all {num_units} units of every stage, these are missing in {work_dir}:\n  "
            + "\n  ".join(lines)
            + "\nrun the same command again, without continue_from_stage 2, to compute them"
        )


def _read(work_dir: Path, unit: int, bound: Mapping, run_stages: stages.RunStages) -> dict[str, Sealed]:
    """The unit of each stage, by name; each was computed from those that it needs."""
    read: dict[str, Sealed] = {}
    for stage in run_stages.by_name.values():
        inputs = {name: read[name] for name in stage.needs}
        read[stage.name] = read_with_inputs(work_dir, stage, unit, bound, inputs)
    return read


def _left_out(read: Iterable[Sealed]) -> set:
    """The idx of the questions of a unit that a stage left out."""
    return {idx for unit in read for name in ("left_out", "missing") for idx, _ in unit.facts.get(name, ())}


def _answers(
    read: Mapping[str, Sealed], unit: int, order: list, settings: RewardSettings
) -> Iterator[tuple[int | str, list[dict]]]:
    """Each question of a unit that has answers, its idx and they with their rewards, in the order of the questions."""
    # The first source ranks; a run has one so far.
    source = stages.SOURCES[stages.CHOSEN[0]]
    rewards = load(source.rewards)
    columns = {stage.name: _column(read[stage.name].table) for stage in source.stages}
    table = read[stages.SAMPLING.name].table.select(["idx", "sample_index", "answer"])
    rows = []
    for row in table.to_pylist():
        key = (row["idx"], row["sample_index"])
        computed = {name: column[key] for name, column in columns.items() if key in column}
        try:
            result = rewards(computed, settings) if len(computed) == len(columns) else NOT_SCORED
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


def _pair_question(
    answers: list[dict], settings: Settings, markers: tuple[str, ...], funnel: Funnel, debug_row: Callable
) -> list[strategies.Pair]:
    """The candidate pairs of one question, counted."""
    ranked, reasons = strategies.split_ranked(answers, markers)
    funnel.answers += len(answers)
    funnel.ranked += len(ranked)
    funnel.not_ranked.update(sorted(reasons.values()))
    places = {
        f"{by}_rank": {row["sample_index"]: place for place, row in enumerate(strategies.ranking(ranked, by), 1)}
        for by in ("sum", "avg")
    }
    for row in answers:
        index = row["sample_index"]
        debug_row(row | {by: place.get(index) for by, place in places.items()} | {"not_ranked": reasons.get(index)})
    return strategies.pair_up(ranked, strategies.PairRule(settings.rank, settings.distance), count_words)


def _count(funnel: Funnel, candidates: CandidateTable, written: Written) -> None:
    funnel.not_ranked = Counter({name: funnel.not_ranked[name] for name in implicit.REASONS if funnel.not_ranked[name]})
    counts = candidates.counts()
    funnel.candidate_pairs = counts.total()
    funnel.dropped = Counter({name: counts[name] for name in filters.FILTERS})
    if counts[NO_SOURCE]:
        funnel.dropped[NO_SOURCE] = counts[NO_SOURCE]
    funnel.not_fitting, funnel.written = written.not_fitting, written.rows


def _write_pairs(path: Path, candidates: CandidateTable, settings: Settings, funnel: Funnel) -> None:
    metadata = {"settings": json.dumps(dataclasses.asdict(settings)), "funnel": funnel.to_json()}
    with pq.ParquetWriter(path, candidates.schema.with_metadata(metadata)) as writer:
        for table in candidates.tables():
            writer.write_table(table.replace_schema_metadata(metadata))


def _ignore(row: Mapping) -> None:
    pass


@contextlib.contextmanager
def _json_rows(path: Path) -> Iterator[Callable[[Mapping], None]]:
    """A function that appends one row to a JSON array in `path`; strict JSON, so that numbers not finite are null."""
    with open(path, "w", encoding="utf-8") as file:
        separator = "[\n"

        def write(row: Mapping) -> None:
            nonlocal separator
            plain = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in row.items()
            }
            file.write(separator + json.dumps(plain, allow_nan=False, ensure_ascii=False))
            separator = ",\n"

        yield write
        file.write("[]\n" if separator == "[\n" else "\n]\n")


def _write_debug_pairs(path: Path, candidates: CandidateTable) -> None:
    with _json_rows(path) as write:
        for table in candidates.tables():
            for row in table.to_pylist():
                write(row)
