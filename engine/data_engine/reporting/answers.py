"""What the page needs of the answers: why they ended, and the spans of those that are shown; units are read one by one.

Units that are gone or broken by now cost the page what they hold, never more: it is made from pairs that are written.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine.errors import UserError
from data_engine.of_pairing import of_pairing, pairs_file
from data_engine.preferences.pairs_metadata import metadata_of
from data_engine.reporting import heat
from data_engine.reporting.heat import NoHeat, Pieces, Span
from data_engine.stages import COMPARED
from data_engine.store import units
from data_engine.store.by_threads import by_threads
from data_engine.store.sealed import read_facts

Key = tuple[int | str, int]
"""idx and sample_index"""
SAMPLED = "sampled_answer"
# What is raised by reading a unit that is broken, or of an earlier version.
UNREADABLE = (OSError, ValueError, KeyError, pa.ArrowException)


@dataclass
class Answers:
    """What was found of the answers of a run."""

    finish_reasons: Counter = field(default_factory=Counter)
    """of all answers"""
    spans: dict[Key, list[Span]] = field(default_factory=dict)
    """of the answers that are shown"""
    why_no_heat: dict[Key, str] = field(default_factory=dict)
    """of those that are shown and have none"""
    no_heat: str | None = None
    """why no answer has any"""


def read_answers(
    work_dir: Path, wanted: Iterable[Key], pieces: list[Pieces] | NoHeat, compared: Sequence[str]
) -> Answers:
    """The answers of a run; `wanted` are those that are shown. `pieces` are those of its tokenizer, or why not.

    `compared` are the roles of the models before and after DPO.
    """
    found, by_idx = Answers(), {}
    for idx, index in wanted:
        by_idx.setdefault(idx, set()).add(index)
    if isinstance(pieces, NoHeat):
        found.no_heat = str(pieces)

    def read(unit: int) -> pa.Table | None:
        path = units.unit_path(work_dir, SAMPLED, unit)
        with contextlib.suppress(*UNREADABLE):
            return pq.read_table(path, columns=["idx", "sample_index", "finish_reason"], partitioning=None)
        return None

    there = sorted(units.published(work_dir, SAMPLED))
    for unit, table in zip(there, by_threads(read, there), strict=True):
        if table is None:
            continue
        with contextlib.suppress(*UNREADABLE):
            found.finish_reasons.update(_counted(table["finish_reason"]))
            rows = _rows(table, by_idx)
            if len(rows) and found.no_heat is None:
                _add_spans(work_dir, unit, rows, (found, pieces), [f"{role}_logps" for role in compared])
    return found


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    return {one["values"] or "unknown": one["counts"] for one in pc.value_counts(column).to_pylist()}


def _rows(table: pa.Table, wanted: Mapping[int | str, set[int]]) -> np.ndarray:
    """Rows of the answers that are shown."""
    if not wanted:
        return np.zeros(0, np.int64)
    values = pa.array(list(wanted), table.schema.field("idx").type)
    rows = np.flatnonzero(pc.is_in(table["idx"], values).to_numpy())
    keys = zip(*(table[name].take(pa.array(rows)).to_pylist() for name in ("idx", "sample_index")), strict=True)
    own = [row for row, (idx, index) in zip(rows.tolist(), keys, strict=True) if index in wanted[idx]]
    return np.array(own, np.int64)


def _add_spans(
    work_dir: Path, unit: int, rows: np.ndarray, into: tuple[Answers, list[Pieces]], stages: Sequence[str]
) -> None:
    found, pieces = into
    path = units.unit_path(work_dir, SAMPLED, unit)
    answers = pq.read_table(path, partitioning=None).take(pa.array(rows)).to_pylist()
    keys = {(row["idx"], row["sample_index"]) for row in answers}
    seal, scored = read_facts(path)[1], {}
    for stage in stages:
        try:
            scored[stage] = _scored(work_dir, stage, unit, seal, keys)
        except UNREADABLE:
            scored[stage] = {}
    for row in answers:
        key = (row["idx"], row["sample_index"])
        try:
            found.spans[key] = _spans(row, [scored[stage].get(key) for stage in stages], pieces)
        except NoHeat as why:
            found.why_no_heat[key] = str(why)


def _scored(work_dir: Path, stage: str, unit: int, seal: str, keys: set[Key]) -> dict[Key, list[float]]:
    """Log-probs of those answers by one model; none where its unit was made from another unit of answers."""
    path = units.unit_path(work_dir, stage, unit)
    if read_facts(path)[0].get("made_from", {}).get("seals", {}).get(SAMPLED) != seal:
        return {}
    table = pq.read_table(path, columns=["idx", "sample_index", "token_logps"], partitioning=None)
    indexes = pa.array(sorted({index for _, index in keys}), pa.int32())
    idxs = pa.array(list({idx for idx, _ in keys}), table.schema.field("idx").type)
    table = table.filter(pc.and_(pc.is_in(table["sample_index"], indexes), pc.is_in(table["idx"], idxs)))
    return {(row["idx"], row["sample_index"]): row["token_logps"] for row in table.to_pylist()}


def _spans(row: Mapping, scored: list[list[float] | None], pieces: list[Pieces]) -> list[Span]:
    """The spans of an answer by the first tokenizer file that fits. Raises NoHeat."""
    if row["answer"] is None:
        raise NoHeat("its thought does not end")
    if row["token_ids"] is None:
        raise NoHeat("it was given as text, and each model read it as tokens of its own")
    num_thought = row.get("thought_tokens") or 0
    counted = row["token_ids"][num_thought:]
    values = heat.differences(*scored, len(counted))
    why = None
    for one in pieces:
        try:
            return heat.spans(one.of(counted), values, row["answer"], cut=num_thought > 0)
        except NoHeat as error:
            why = error
    raise why


def pieces_of_run(run_file: Mapping, same_tokenizer: bool, has_implicit: bool) -> list[Pieces] | NoHeat:
    """What decodes the ids of a run's answers, or why nothing shows which token said what."""
    if not has_implicit:
        return NoHeat("this run has no implicit reward, whose share of each token it would show")
    if not same_tokenizer:
        return NoHeat("the two models split texts into different tokens, so that no token has a log-prob by both")
    why = NoHeat("run.json does not say where the instruct model is")
    for folder in _folders(run_file):
        try:
            return [Pieces(decode) for decode in heat.decoders(folder)]
        except NoHeat as error:
            why = error
    return why


def _folders(run_file: Mapping) -> Iterable[Path]:
    """Where the tokenizer of the answers may lie: the folders of the instruct model, then of its base; then those of
    the models that share it.
    """
    config, models = run_file.get("config", {}), run_file.get("models", {})
    for role in COMPARED:
        named = [config.get(f"{role}_model_path"), config.get(f"{role}_base_model_path")]
        told = models.get(role, {}) if isinstance(models.get(role, {}), Mapping) else {}
        for name in [*named, told.get("adapter"), *(told.get("folders") or [])]:
            if name:
                yield Path(name)


def read_run_file(work_dir: Path, name: str) -> dict:
    """run.json as it was for a pairing, {} where there is none that can be read."""
    try:
        found = json.loads((work_dir / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    told = metadata_of(pairs_file(work_dir, name), "rewards", "bound", "same_tokenizer", "funnel")
    # Neither a file of before, nor one of sources that this program does not have, keeps the page from being made.
    with contextlib.suppress(KeyError, UserError):
        found = of_pairing(found, told)
    return found
