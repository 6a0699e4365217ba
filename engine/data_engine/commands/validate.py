"""`data-engine validate`: everything that is wrong with a run at once, and what it will take. Imports no torch.

launch/run_engine.sh runs it before any rank starts, so that mistakes are reported once and not by every rank. The
checks are in planning/checks.py; with --measure, planning/measure.py times each stage in processes of its own.
"""

import json
from collections.abc import Sequence

from data_engine.commands.arguments import read
from data_engine.errors import UserError
from data_engine.planning.checks import run_checks
from data_engine.planning.found import Found
from data_engine.planning.plan import RunPlan, empty_shards, idle_ranks, plan_of
from data_engine.planning.showing import measured_lines, plan_lines
from data_engine.plural import plural
from data_engine.processes import counting, cpu_wait, output
from data_engine.processes.ranks import asked_ranks, idle_nodes, num_threads
from data_engine.processes.signals import interrupted_by_signals

OPTIONS = ("measure", "json")
HELP = """Tells all that is wrong with a run, and what it will take; writes nothing.

options of validate alone:
  --measure   time each stage on some of the questions, about a minute, and say how long the run will take
  --json      problems, warnings, plan and measurement as one JSON object"""


def main(argv: Sequence[str]) -> int:
    """Check what `data-engine run` would be given, and print what was found. Raises UserErrors for all mistakes."""
    counting.to_stderr()
    asked = {name for name in OPTIONS if f"--{name}" in argv}
    rest = [word for word in argv if word.removeprefix("--") not in asked or not word.startswith("--")]
    if given := next((word for word in rest if word.startswith(tuple(f"--{name}=" for name in OPTIONS))), None):
        raise UserError(f"{given.partition('=')[0]} takes no value, got {json.dumps(given.partition('=')[2])}")
    if {"-h", "--help"} & set(rest):
        print(f"{HELP}\n")
    ranks = asked_ranks()
    found = run_checks(read(rest, "validate"), tell="json" not in asked)
    plan = plan_of(found, ranks.world_size)
    if plan is not None:
        shard = (found.config.num_shards, found.config.shard_index)
        found.warnings += filter(None, (empty_shards(found, *shard), idle_ranks(found, ranks.world_size), idle_nodes()))
    measured = None
    if "measure" in asked and not found.problems:
        # Imported here: most who validate do not measure.
        from data_engine.planning.measure import measure
        from data_engine.planning.weights import is_installed

        with found.noting("measure"):
            if not is_installed():
                raise UserError("--measure runs the models, and torch is not installed here: validate without it, or "
                                "where the run will be")  # fmt: skip
            # As before a run, whose threads would wait in another way on a busy machine, many times slower.
            cpu_wait.apply(ranks.local_world_size * num_threads(found.config.threads, ranks))
            with interrupted_by_signals():
                measured = measure(found, ranks)
    if "json" in asked:
        print(json.dumps(_as_json(found, plan, measured), indent=1), flush=True)
        return 2 if found.problems else 0
    _show(found, plan, measured)
    return 0


def _as_json(found: Found, plan: RunPlan | None, measured: dict | None) -> dict:
    told = {"problems": [problem.as_json() for problem in found.problems], "warnings": found.warnings}
    models = found.heavy.get("models", {})
    return told | {"models": models, "plan": None if plan is None else plan.as_json(), "measured": measured}


def _show(found: Found, plan: RunPlan | None, measured: dict | None) -> None:
    output.warn(found.warnings)
    found.raise_any()
    lines = [describe(found)]
    lines += ["", *plan_lines(plan)] if plan is not None else []
    lines += ["", *measured_lines(measured)] if measured is not None else []
    print("\n".join(lines), flush=True)


def describe(found: Found) -> str:
    """A configuration without a mistake, in a line, and a line for each model."""
    config, looked_up, roles = found.config, found.heavy["models"], found.config.roles
    given = "the answers of --answers" if config.answers is not None else f"{plural(config.sample_k, 'answer')} each"
    answers = found.given.told() if found.given else f"{plural(len(found.questions), 'question')}, {given}"
    families = " and ".join(found.families[role] for role in roles)
    models = f"{' and '.join(roles)} model: {families}" if roles else "no model"
    first = f"valid: {answers}; {models}; work_dir {config.work_dir}"
    if not found.questions.has_images:
        first += "; every question is asked without an image: the dataset has no column of them"
    unusable = len(found.first_rows.reasons) if found.first_rows is not None else 0
    if unusable and config.continue_from_stage == 0:
        first += f"; of the first {found.first_rows.looked_at} rows {unusable} cannot be used"
    lines = (f"  {role} model: {looked_up[role]['told']}" for role in roles if role in looked_up)
    return "\n".join([first, *lines])
