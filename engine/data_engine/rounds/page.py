"""The page of a loop: what its rounds made, and how rewards went from round to round."""

import json
import logging
from pathlib import Path

import pyarrow as pa

from data_engine.config import RunConfig
from data_engine.errors import UserError, first_line
from data_engine.of_pairing import pairs_file
from data_engine.preferences.pairs_metadata import metadata_of, read_funnel
from data_engine.reporting import course
from data_engine.reporting.pair_numbers import PairNumbers
from data_engine.rounds.places import Round, is_one_scale, rounds_of
from data_engine.store.absent import is_file
from data_engine.store.atomic import replacing

log = logging.getLogger(__name__)


def path_of(loop: Path) -> Path:
    """Where the page lies."""
    return loop / "index.html"


def write(loop: RunConfig, folder: Path) -> None:
    """Write the page of the rounds whose pairs are made, unless it is there as it is to be.

    A round of which the run was removed, or is damaged, is not on it; the loop needs neither.
    """
    facts = []
    for one in rounds_of(folder):
        if is_file(pairs_file(one.run)):
            try:
                facts.append(_facts(one))
            except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, UserError) as error:
                log.warning("round %d is not on the page: %s", one.number, first_line(error))
    if not facts:
        return
    changing = [source for source in loop.stages.sources if not is_one_scale(loop, source)]
    path, text = path_of(folder), course.text(folder.name, facts, changing)
    if is_file(path) and path.read_text(encoding="utf-8") == text:
        return
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _facts(one: Round) -> course.RoundFacts:
    path = pairs_file(one.run)
    run_file = json.loads((one.run / "run.json").read_text(encoding="utf-8"))
    seconds = one.training()["seconds"] if one.is_done else None
    numbers = PairNumbers.read(path)
    kept = numbers.kept
    words = (
        [float(numbers.columns[f"{side}_words"][kept].mean()) for side in ("chosen", "rejected")] if len(kept) else None
    )
    return course.RoundFacts(
        one.number, run_file["config"]["instruct_model_path"], read_funnel(one.run),
        metadata_of(path, "reward_totals").get("reward_totals", {}), words, seconds,
        str((one.run / "report/index.html").relative_to(one.loop)),
    )  # fmt: skip
