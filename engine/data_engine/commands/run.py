"""`data-engine run`: the flags, then one rank's part of the job. Imports torch only after the flags are read."""

import contextlib
import importlib
import signal
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from data_engine.commands.arguments import read
from data_engine.config import Draft, RunConfig
from data_engine.errors import UserError, UserErrors
from data_engine.planning.checks import require_all
from data_engine.planning.own_folders import check_place
from data_engine.processes import cpu_wait, output, signals, stacks
from data_engine.processes.counting import waiting
from data_engine.processes.ranks import Ranks, idle_nodes, is_launched, num_threads, take_place
from data_engine.store import units


def main(argv: Sequence[str]) -> int:
    """Run the job and return its exit code. Raises UserErrors for all that is wrong with it, as `validate` does."""
    draft = read(argv)
    if draft.problems:
        _refuse(draft)
    config = draft.config
    stacks.dump_on_signal(signal.SIGUSR2)
    take_place()
    # Ranks of a launcher were told by it, before the first of them worked.
    if not is_launched():
        output.warn(filter(None, [idle_nodes()]))
        cpu_wait.apply(num_threads(config.threads, Ranks()))
    try:
        check_place(Path(config.work_dir))
        return _worker().run(config)
    except UserError as error:
        try:
            _refuse(Draft(config, [error], frozenset()))
        except UserErrors as errors:
            # A run may be refused hours after its start.
            raise UserErrors(errors.found, _published(config)) from error
        raise


def _worker() -> ModuleType:
    """Imports torch, which takes seconds."""
    shown = contextlib.nullcontext() if is_launched() else waiting("importing torch")
    with shown, signals.leaving_at_once():
        return importlib.import_module("data_engine.job.worker")


def _refuse(draft: Draft) -> None:
    """Raise UserErrors for its mistakes, and for whatever else is wrong: a good run never comes here.

    Ranks of a launcher tell their own mistakes alone: run_engine.sh has made all checks before.
    """
    if is_launched():
        draft.raise_any()
    require_all(draft)


def _published(config: RunConfig) -> str:
    """What there is of the run, of this start or of an earlier one."""
    work_dir = Path(config.work_dir)
    # Where a folder cannot be listed, there may be some.
    with contextlib.suppress(OSError):
        if not any(units.published(work_dir, name) for name in config.stages.by_name):
            return "no unit was published"
    return f'the units that are published in "{work_dir}" stay there'
