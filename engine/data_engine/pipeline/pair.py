"""Stage 2: the answers and their log-probs in, pairs/pairs.parquet and dataset/ out.

Memory is bounded: one unit at a time, and a few bytes of each candidate pair. Everything is recomputed on every call,
and published only when it is complete: the dataset first, then the pairs, which carry the settings.
"""

import contextlib
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from data_engine import errors, exports, schemas, stages
from data_engine.exports.base import NO_SOURCE as NO_SOURCE_ANY_MORE
from data_engine.exports.base import NOT_FITTING, ExportSource, Written
from data_engine.pipeline.rewarded import left_out, read_stages, rewarded, with_places
from data_engine.preferences import filters, strategies
from data_engine.preferences.candidates import NO_SOURCE, CandidateTable
from data_engine.preferences.counts import Funnel
from data_engine.preferences.word_count import count_words
from data_engine.questions.dataset import Questions
from data_engine.questions.images import Exif
from data_engine.rewards import RewardSettings, implicit
from data_engine.store import units
from data_engine.store.folders import move_in, scratch_folder

PAIRS_FILE = Path("pairs", "pairs.parquet")


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
    control_tokens: tuple[str, ...] = (),
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
                read = read_stages(work_dir, unit, bound, run_stages)
                funnel.quarantined += len(left_out(read.values()))
                funnel.turned += read[stages.SAMPLING.name].facts.get("turned", 0)
                for idx, answers in rewarded(read, unit, questions.idx[rows.start : rows.stop], reward_settings):
                    candidates.add(idx, _pair_question(answers, settings, markers, funnel, add_row))
        candidates.filter_dataset()
        source = ExportSource(candidates, questions, unit_ranges, work_dir, seed, exif, control_tokens)
        written = exports.export(exports.DEFAULT, source, work_dir / "dataset", scratch)
        candidates.drop(written.without_source)
        _count(funnel, candidates, written)
        if debug:
            move_in(scratch / "rewards.json", work_dir / "debug/rewards.json")
            _write_debug_pairs(scratch / "pairs.json", candidates)
            move_in(scratch / "pairs.json", work_dir / "debug/pairs.json")
        metadata = {"settings": json.dumps(dataclasses.asdict(settings)), "funnel": funnel.to_json()}
        metadata["same_tokenizer"] = json.dumps(same_tokenizer)
        _write_pairs(scratch / "pairs.parquet", candidates, metadata)
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


def _pair_question(
    answers: list[dict], settings: Settings, markers: tuple[str, ...], funnel: Funnel, debug_row: Callable
) -> list[strategies.Pair]:
    """The candidate pairs of one question, counted."""
    ranked, reasons = strategies.split_ranked(answers, markers)
    funnel.answers += len(answers)
    funnel.ranked += len(ranked)
    funnel.not_ranked.update(sorted(reasons.values()))
    for row in with_places(answers, ranked, reasons):
        debug_row(row)
    return strategies.pair_up(ranked, strategies.PairRule(settings.rank, settings.distance), count_words)


def _count(funnel: Funnel, candidates: CandidateTable, written: Written) -> None:
    funnel.not_ranked = Counter({name: funnel.not_ranked[name] for name in implicit.REASONS if funnel.not_ranked[name]})
    counts = candidates.counts()
    funnel.candidate_pairs = counts.total()
    funnel.dropped = Counter({name: counts[name] for name in filters.FILTERS})
    if counts[NO_SOURCE]:
        funnel.dropped[NO_SOURCE] = counts[NO_SOURCE]
    counted = (NOT_FITTING, NO_SOURCE_ANY_MORE)
    funnel.not_written = Counter({name: written.left_out[name] for name in sorted(written.left_out.keys() - counted)})
    funnel.not_fitting, funnel.rewritten, funnel.written = written.not_fitting, written.rewritten, written.rows


def _write_pairs(path: Path, candidates: CandidateTable, metadata: dict[str, str]) -> None:
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
