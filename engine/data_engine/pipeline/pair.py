"""Stage 2: the answers and their log-probs in, pairs/NAME.parquet out, and dataset/ for the run's own pairing.

Memory is bounded: see pairing.py. Everything is recomputed on every call, and published only when it is complete: the
dataset first, then the pairs, which carry the settings.
"""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine import errors, exports, stages
from data_engine.exports.base import NO_SOURCE, NOT_FITTING, ExportSource, Written
from data_engine.of_pairing import OWN, pairs_file
from data_engine.pipeline.pair_settings import Settings
from data_engine.pipeline.pairing import Paired, paired
from data_engine.pipeline.rewarded import Stored
from data_engine.plural import plural
from data_engine.preferences import reward_totals
from data_engine.preferences.candidates import CandidateTable
from data_engine.preferences.filters import KEPT
from data_engine.preferences.funnel import Funnel
from data_engine.preferences.pairs_metadata import metadata_of, read_funnel
from data_engine.questions.dataset import Questions
from data_engine.questions.images import Exif
from data_engine.store import units
from data_engine.store.absent import is_there
from data_engine.store.folders import move_in, part_of, scratch_folder

# Of the scratch folders of the other pairings.
NAMED_SCRATCH = "pairs"


@dataclass(frozen=True)
class DatasetSource:
    """What dataset/ is made of besides the pairs."""

    questions: Questions
    unit_ranges: list[range]
    """the rows of each unit"""
    exif: Exif = "apply"
    control_tokens: tuple[str, ...] = ()


def run(stored: Stored, settings: Settings, source: DatasetSource, folder: Path, debug: bool = False) -> Funnel:
    """Pair all answers of a run and publish its dataset, by renames out of `folder`, which lies in the work_dir.

    Raises IncompleteError where units are missing, DamagedUnitError for one that must be computed again, UserError for
    one that was computed from other values than those of `stored.bound`, or from other rows than the questions, and
    where questions of the dataset that is there cannot be read any more.
    """
    work_dir = stored.work_dir
    require_units(work_dir, stored.num_units, stored.run_stages)
    with part_of(folder, "pairing") as scratch:
        with _json_rows(scratch / "rewards.json") if debug else contextlib.nullcontext() as add_row:
            found = paired(stored, settings, scratch, add_row)
        found.funnel.questions = len(source.questions)
        candidates = found.candidates
        made_from = ExportSource(
            candidates, source.questions, source.unit_ranges, work_dir, settings.seed, source.exif,
            source.control_tokens,
        )  # fmt: skip
        new, written = exports.build(exports.DEFAULT, made_from, scratch)
        _require_sources(work_dir, written)
        exports.publish(exports.DEFAULT, new, written, work_dir / "dataset")
        candidates.drop(written.without_source)
        found.count()
        _count_written(found.funnel, written)
        if debug:
            move_in(scratch / "rewards.json", work_dir / "debug/rewards.json")
            _write_debug_pairs(scratch / "pairs.json", candidates)
            move_in(scratch / "pairs.json", work_dir / "debug/pairs.json")
        _publish(found, scratch, pairs_file(work_dir))
    return found.funnel


def run_named(stored: Stored, settings: Settings, num_questions: int, name: str) -> Funnel:
    """Pair all answers of a run once more, by other settings, as pairs/NAME.parquet; no dataset is written.

    One of the same name is replaced. Raises what run raises.
    """
    require_units(stored.work_dir, stored.num_units, stored.run_stages)
    with scratch_folder(stored.work_dir, NAMED_SCRATCH) as scratch:
        found = paired(stored, settings, scratch)
        found.count()
        found.funnel.questions, found.funnel.kept = num_questions, len(found.candidates)
        _publish(found, scratch, pairs_file(stored.work_dir, name))
    return found.funnel


def told_of(work_dir: Path, name: str = OWN) -> str | None:
    """How many pairs a pairing that is written has, and the flags that make it again; None where there is none."""
    try:
        settings = metadata_of(pairs_file(work_dir, name), "settings")["settings"]
        kept = read_funnel(work_dir, name).found
    # There is none, or it is damaged.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"one with {plural(kept, 'pair')}, by " + " ".join(f"--{flag} {value}" for flag, value in settings.items())


def summary(work_dir: Path, funnel: Funnel, name: str = OWN) -> str:
    """What is printed of a pairing that is written: its funnel, how its rewards lie over all answers, and the alpha
    that --length_alpha auto came to."""
    found = metadata_of(pairs_file(work_dir, name), "reward_totals", "length_alpha")
    told = [reward_totals.told(*one) for one in found.get("reward_totals", {}).items()]
    if "length_alpha" in found:
        told.append(f"length_alpha auto came to {found['length_alpha']!r}, by which answers ranked")
    return "\n".join([funnel.table(), *told])


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
            + "\ngive the command of the run again, without continue_from_stage 2, to compute them"
        )


def _require_sources(work_dir: Path, written: Written) -> None:
    """Raise UserError where a dataset would take the place of one that has questions which cannot be read now.

    A disk that is not mounted, or a wrong --image_root, would else empty the dataset of a finished run.
    """
    path = pairs_file(work_dir)
    if not written.without_source or not is_there(path):
        return
    try:
        table = pq.read_table(path, columns=["idx", "status"])
        lost = written.without_source & {*table.filter(pc.equal(table["status"], KEPT))["idx"].to_pylist()}
    except pa.ArrowException:
        # A broken file does not tell which questions the dataset beside it has.
        lost = written.without_source
    if lost:
        raise errors.UserError(
            f"pairs and dataset stay as they are: the new ones would lack the pairs of {plural(len(lost), 'question')} "
            f"whose text or picture can no longer be read, as of {written.first_gone}. Give the pictures back, or say "
            f'by --image_root where they are; to do without these pairs, remove "{path}" first'
        )


def _count_written(funnel: Funnel, written: Written) -> None:
    counted = (NOT_FITTING, NO_SOURCE)
    funnel.not_written = Counter({name: written.left_out[name] for name in sorted(written.left_out.keys() - counted)})
    funnel.not_fitting, funnel.rewritten, funnel.written = written.not_fitting, written.rewritten, written.rows


def _publish(found: Paired, scratch: Path, target: Path) -> None:
    found.write(scratch / "pairs.parquet")
    move_in(scratch / "pairs.parquet", target)


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
