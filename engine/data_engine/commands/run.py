"""`data-engine run`: the flags, then one rank's part of the job. Imports torch only after the flags are read."""

import importlib
import signal
from collections.abc import Sequence
from pathlib import Path

from data_engine.commands.arguments import read
from data_engine.config import Draft
from data_engine.errors import UserError
from data_engine.planning.checks import check_place, require_all
from data_engine.processes import cpu_wait, stacks
from data_engine.processes.ranks import Ranks, is_launched, num_threads


def main(argv: Sequence[str]) -> int:
    """Run the job and return its exit code. Raises UserErrors for all that is wrong with it, as `validate` does."""
    draft = read(argv)
    if draft.problems:
        _refuse(draft)
    config = draft.config
    stacks.dump_on_signal(signal.SIGUSR2)
    # Ranks of a launcher were told by it, before the first of them worked.
    if not is_launched():
        cpu_wait.apply(num_threads(config.threads, Ranks()))
    try:
        check_place(Path(config.work_dir))
        return importlib.import_module("data_engine.job.worker").run(config)
    except UserError as error:
        _refuse(Draft(config, [error], frozenset()))
        raise


def _refuse(draft: Draft) -> None:
    """Raise UserErrors for its mistakes, and for whatever else is wrong: a good run never comes here.

    Ranks of a launcher tell their own mistakes alone: run_engine.sh has made all checks before.
    """
    if is_launched():
        draft.raise_any()
    require_all(draft)
