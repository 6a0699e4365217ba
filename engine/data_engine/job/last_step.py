"""The last step of a run, on one rank: pairs, dataset, report, and what a person sees of them."""

import logging
import time

from data_engine.job.plan import Plan
from data_engine.pipeline import pair
from data_engine.preferences.counts import Funnel
from data_engine.reporting import page
from data_engine.reporting.timings import kinds_of_reasons
from data_engine.store import claims, logs, units

log = logging.getLogger(__name__)


def pair_all(plan: Plan) -> bool:
    """Write pairs, dataset and report, and print the funnel; False, with the reasons logged, where no pair is left."""
    config = plan.config
    pair.require_units(plan.work_dir, len(plan.unit_rows), plan.stages)
    units.sweep(plan.work_dir)
    claims.Claims(plan.work_dir, plan.ranks.rank).sweep()
    log.info("pairing")
    start = time.perf_counter()
    funnel = pair.run(
        plan.work_dir, plan.questions, plan.unit_rows, rank=config.rank, distance=config.distance,
        beta=config.beta, seed=config.seed, markers=plan.sampler.markers, same_tokenizer=plan.same_tokenizer,
        debug=config.debug, bound=plan.bound, exif=config.exif, run_stages=plan.stages,
    )  # fmt: skip
    logs.note(plan.work_dir, plan.ranks.rank, "pairing", time.perf_counter() - start)
    page.write_report(plan.work_dir, plan.questions, funnel, config.max_megapixels, config.exif)
    print(funnel.table(), flush=True)
    found = funnel.written + funnel.not_fitting
    if not found:
        log.error("%s", why_nothing(plan, funnel))
    return found > 0


def why_nothing(plan: Plan, funnel: Funnel) -> str:
    """Why no pair is left: every reason that left something out, the most frequent first."""
    left_out = kinds_of_reasons(plan.work_dir)
    reasons = [(count, f"{stage}: rows left out: {reason}") for (stage, reason), count in left_out.items()]
    reasons += [(count, f"answers not ranked: {reason}") for reason, count in funnel.not_ranked.items()]
    reasons += [(count, f"pairs dropped: {name}") for name, count in funnel.dropped.items() if count]
    if funnel.ranked and not funnel.candidate_pairs:
        reasons.append(
            (funnel.ranked, "answers ranked, no two of a question whose lengths are near enough (--distance)")
        )
    told = "; ".join(f"{count} {reason}" for count, reason in sorted(reasons, reverse=True))
    return f"nothing could be written, the dataset has no row: {told or 'no reason is known'}"
