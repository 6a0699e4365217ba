"""`data-engine pairs`: another pairing of a run's answers, from what is stored. No model, no dataset, no torch."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_engine.commands.arguments import add_flag, normalised
from data_engine.commands.examples import Parser
from data_engine.commands.work_dir import config_of, given_path, read_paired, told_of_disk
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.exit_codes import DONE, NOTHING_WRITTEN
from data_engine.flags import DEFAULTS
from data_engine.of_pairing import FLAGS, OWN, of_pairing, pairs_file
from data_engine.processes import counting, output
from data_engine.stages import SAMPLING, SOURCES, RunStages

if TYPE_CHECKING:
    from data_engine.pipeline.rewarded import Stored

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
# The value that takes back a flag of the run's.
NONE = "none"


def main(argv: Sequence[str]) -> int:
    """Write WORK_DIR/pairs/NAME.parquet and print its funnel; 4 where no pair is kept.

    Raises UserError for what cannot be meant, IncompleteError where units are missing.
    """
    counting.to_stderr()
    asked = vars(_parser().parse_args(list(argv)))
    work_dir, name = given_path("WORK_DIR", asked.pop("work_dir")), asked.pop("name")
    _check_name(name)
    run_file = read_paired(work_dir, (("bound", "dataset"), ("units", "num_units"), ("units", "num_questions")))
    # Imported late: pyarrow and numpy would delay the messages above.
    from data_engine.pipeline.export import read_metadata
    from data_engine.pipeline.pair import require_units, run_named, summary, told_of
    from data_engine.pipeline.pair_settings import Settings, without_effect

    told = read_metadata(work_dir)
    config = _config(work_dir, run_file, told["settings"], asked)
    of_own = of_pairing(run_file, told)
    run_stages = _stages(work_dir, run_file, of_own, config.rank_by)
    settings = Settings.of(config, run_stages)
    # Others were given to the run, not here.
    output.warn([told for flag, told in without_effect(config, run_stages).items() if flag in asked])
    require_units(work_dir, run_file["units"]["num_units"], run_stages)
    replaced = told_of(work_dir, name)
    with told_of_disk(work_dir):
        stored = _stored(work_dir, run_file, run_stages, of_own.get("same_tokenizer", told["same_tokenizer"]))
        funnel = run_named(stored, settings, run_file["units"]["num_questions"], name)
    print(summary(work_dir, funnel, name))
    print(f"{pairs_file(work_dir, name)}{f' (replaced {replaced})' if replaced else ''}", flush=True)
    if not funnel.found:
        why = "the lines above say where they were left out"
        if funnel.ranked and not funnel.candidate_pairs:
            why = f"{funnel.ranked} {funnel.why_no_candidates(config.strategy)}"
        print(f"data-engine: no pair is kept; {why}", file=sys.stderr)
        return NOTHING_WRITTEN
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="data-engine pairs",
        usage="data-engine pairs WORK_DIR --name NAME [--strategy ...] [--rank_by ...] ...",
        description="Pairs the answers of a run once more, as WORK_DIR/pairs/NAME.parquet, which data-engine export "
        "and report take by --name. A flag that is not given keeps the value of the run's own pairs; the value none "
        "unsets rank_by, right, a margin, length_alpha and near_duplicates.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("work_dir", metavar="WORK_DIR", help="of a run whose pairs are written")
    parser.add_argument(
        "--name", metavar="NAME", default=None, help="of the pairing; one of the same name is replaced (required)"
    )
    for name in FLAGS:
        add_flag(parser, name)
    return parser


def _check_name(name: str | None) -> None:
    if name is None:
        raise UserError("what is the pairing called? give --name NAME; the run's own pairs are made by data-engine run")
    if name == OWN:
        raise UserError(
            f'--name "{OWN}" is what the run\'s own pairs are called: choose another, or give the command of the run '
            "with --continue_from_stage 2"
        )
    if not NAME.fullmatch(name):
        raise UserError(f'--name must be made of letters, digits, _ and -, 100 at most, got "{name}"')


def _config(work_dir: Path, run_file: Mapping, of_run: Mapping, given: Mapping) -> RunConfig:
    """The configuration of the run with the flags of pairing: those that are given, else those of its own pairs."""
    values = {name: of_run.get(name, DEFAULTS[name]) for name in FLAGS}
    values |= {name: None if value == NONE and DEFAULTS[name] is None else value for name, value in given.items()}
    # What belongs to the run's strategy does not go on under another one.
    if values["strategy"] != "right_wrong" and "right" not in given:
        values["right"] = None
    if values["strategy"] == "right_wrong" and "length_alpha" not in given:
        values["length_alpha"] = None
    values = {name: normalised(name, value) for name, value in values.items()}
    return dataclasses.replace(config_of(work_dir, run_file, {}), **values)


def _stages(work_dir: Path, run_file: Mapping, of_own: Mapping, rank_by: str | None) -> RunStages:
    """With the sources of reward of the run's own pairs, as `of_own` has them, and those of its last start that
    --rank_by names or that are computed: that start may be at work still."""
    from data_engine.store.units import missing, published

    own, of_start = RunStages.of(of_own["config"]).sources, RunStages.of(run_file["config"])

    def is_computed(source: str) -> bool:
        units = range(run_file["units"]["num_units"])
        return not any(missing(work_dir, stage.name, units) for stage in of_start.source(source).stages)

    named = [name.strip().partition(".")[0] for name in (rank_by or "").split(",")]
    left_out = (name for name in named if name in SOURCES and name not in (*own, *of_start.sources))
    for source in left_out:
        if all(published(work_dir, stage.name) for stage in SOURCES[source].stages):
            raise UserError(
                f'rank_by names {source}, of which "{work_dir}" has units of an earlier start: give the command of the '
                f"run with --rewards {','.join((*of_start.sources, source))}, which computes none of them again"
            )
    further = [source for source in of_start.sources if source not in own]
    further = [source for source in further if source in named or is_computed(source)]
    return RunStages.of(of_own["config"] | {"rewards": ",".join((*own, *further))})


def _stored(work_dir: Path, run_file: Mapping, run_stages: RunStages, same_tokenizer: bool) -> "Stored":
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_engine.pipeline.rewarded import Stored
    from data_engine.store.units import unit_path

    num_units = run_file["units"]["num_units"]
    idx_type = pa.string()
    if num_units:
        idx_type = pq.read_schema(unit_path(work_dir, SAMPLING.name, 0)).field("idx").type
    markers = run_file.get("models", {}).get(SAMPLING.model, {}).get("markers", ())
    return Stored(work_dir, num_units, idx_type, run_file["bound"], tuple(markers), same_tokenizer, run_stages)
