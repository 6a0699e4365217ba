"""The last step of a run, on one rank: pairs, dataset, report, and what a person sees of them."""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from data_engine import exports
from data_engine.job import limit, run_file
from data_engine.job.plan import Plan
from data_engine.of_pairing import of_pairing
from data_engine.pipeline import pair, unrewarded
from data_engine.pipeline.export import FinishedRun, read_metadata
from data_engine.pipeline.pair_settings import Settings, without_effect
from data_engine.pipeline.rewarded import Stored
from data_engine.preferences.funnel import Funnel
from data_engine.processes.signals import Stop, Stopped
from data_engine.reporting import page, quarantine
from data_engine.reporting.timings import Summary
from data_engine.store import claims, logs, units
from data_engine.store.folders import move_in, part_of, remove_leftovers, sole_scratch_folder

POLL_S = 0.2

log = logging.getLogger(__name__)


@contextlib.contextmanager
def alone(work_dir: Path, own: claims.Claims, stop: Stop) -> Iterator[Path]:
    """Inside, no other start of this work_dir takes its last step: pairs, dataset and exports are all of one start.

    Yields the folder out of which all that it publishes is renamed. Raises Stopped where a signal comes while it waits
    for another start, and TakenOverError where one took its last step while this one was stopped for a while.
    """
    told = False
    while not stop.wanted:
        with own.hold(claims.PAIRING, 0) as mine:
            if mine:
                has_claim = functools.partial(own.still_holds, claims.PAIRING, 0)
                with sole_scratch_folder(work_dir, "pairing", has_claim) as scratch:
                    yield scratch
                return
        if not told:
            log.info("another start is pairing, this one pairs after it")
            told = True
        time.sleep(POLL_S)
    raise Stopped


def pair_all(plan: Plan, scratch: Path) -> bool:
    """Write pairs, dataset and report, and print the funnel; False, with the reasons logged, where no pair is left.

    For who is alone; all that is published is renamed out of the folder `scratch`.
    """
    config = plan.config
    limit.require_newest(plan.work_dir, run_file.read(plan.work_dir), len(plan.questions))
    pair.require_units(plan.work_dir, len(plan.unit_rows), plan.stages)
    units.sweep(plan.work_dir)
    # This start may take no given answers, and may not be followed by the commands that leave the others.
    for purpose in ("export", "answers", pair.NAMED_SCRATCH):
        remove_leftovers(plan.work_dir, purpose)
    claims.Claims(plan.work_dir, plan.ranks.rank).sweep()
    log.info("pairing")
    start = time.perf_counter()
    settings, before = Settings.of(config, plan.stages), pair.told_of(plan.work_dir)
    funnel = pair.run(stored_of(plan), settings, _source_of(plan), scratch, debug=config.debug)
    logs.note(plan.work_dir, plan.ranks.rank, "pairing", time.perf_counter() - start)
    of_sources = (told for flags in config.source_flags.values() for told in flags.warnings)
    without_number = unrewarded.told(plan.work_dir, plan.stages)
    for told in (*without_effect(config, plan.stages).values(), *of_sources, *without_number):
        log.warning("%s", told)
    if before not in (None, pair.told_of(plan.work_dir)):
        log.info("pairs and dataset are replaced: before, %s", before)
    _report(plan, funnel, scratch)
    print(pair.summary(plan.work_dir, funnel), flush=True)
    _export(plan, scratch)
    print("\n".join(_places(plan, funnel)), flush=True)
    if not funnel.found:
        log.error("%s", why_nothing(plan, funnel))
    return funnel.found > 0


def stored_of(plan: Plan) -> Stored:
    """The answers of the run, and what is known of them."""
    ranges, idx = plan.unit_rows, plan.questions.idx
    markers = plan.trained.markers if plan.trained else ()
    return Stored(
        plan.work_dir, len(ranges), plan.questions.idx_type, plan.bound, markers, plan.same_tokenizer, plan.stages,
        lambda unit: idx[ranges[unit].start : ranges[unit].stop],
    )  # fmt: skip


def _source_of(plan: Plan) -> pair.DatasetSource:
    control_tokens = plan.trained.control_tokens if plan.trained else ()
    return pair.DatasetSource(plan.questions, plan.unit_rows, plan.config.exif, control_tokens)


def _report(plan: Plan, funnel: Funnel, scratch: Path) -> None:
    config, made = plan.config, scratch / "index.html"
    text = page.report_text(plan.work_dir, plan.questions, funnel, config.max_megapixels, config.exif)
    made.write_text(text, encoding="utf-8")
    move_in(made, page.report_path(plan.work_dir))


def _export(plan: Plan, scratch: Path) -> None:
    """Write the exports of --export, and say which older ones are no longer those of the pairs."""
    config, folder = plan.config, plan.work_dir / exports.FOLDER
    names = exports.chosen(config.export)
    if names:
        told = of_pairing(run_file.read(plan.work_dir), read_metadata(plan.work_dir))
        run = FinishedRun(plan.work_dir, told, plan.questions, config)
        with part_of(scratch, "exports") as own:
            for name, written in run.write(names, folder, own).items():
                print(exports.told(name, written), flush=True)
    stale = sorted(path.name for path in folder.glob("*") if path.name in exports.EXPORTS and path.name not in names)
    if stale:
        log.warning("%s has exports of an earlier pairing; --export %s writes them anew", folder, ",".join(stale))


def _places(plan: Plan, funnel: Funnel) -> Iterator[str]:
    """Where the results are."""
    if funnel.written:
        yield f"dataset: {plan.work_dir / 'dataset'}"
    if plan.config.export is not None:
        yield f"exports: {plan.work_dir / exports.FOLDER}"
    yield f"report: {page.report_path(plan.work_dir)}"


def why_nothing(plan: Plan, funnel: Funnel) -> str:
    """Why no pair is left: every reason that left something out, the most frequent first."""
    kinds = quarantine.counts(plan.work_dir)
    reasons = [(count, f"{stage}: rows left out: {reason}") for (stage, reason), count in kinds.items()]
    reasons += [(count, f"answers not ranked: {reason}") for reason, count in funnel.not_ranked.items()]
    reasons += [(count, f"pairs dropped: {name}") for name, count in funnel.dropped.items() if count]
    reasons += [(count, f"pairs left out of the dataset: {reason}") for reason, count in funnel.not_written.items()]
    if funnel.ranked and not funnel.candidate_pairs:
        reasons.append((funnel.ranked, funnel.why_no_candidates(plan.config.strategy)))
    told = "; ".join(f"{count} {reason}" for count, reason in sorted(reasons, reverse=True))
    return f"nothing could be written, the dataset has no row: {told or 'no reason is known'}"


def summarise(work_dir: Path) -> None:
    """Print where the time went and what was left out, and write the file that has each row of it."""
    summary = Summary.read(work_dir)
    print(f"\n{summary.table()}", flush=True)
    try:
        every = quarantine.write(work_dir, summary.reasons)
    # The work is done: a list for people, which the units hold as well, must not make it a failure.
    except OSError as error:
        log.warning('"%s" cannot be written: %s', work_dir / quarantine.FILE, error.strerror or error)
        return
    if every is not None:
        print(f"each row that was quarantined, with its whole reason: {every}", flush=True)
