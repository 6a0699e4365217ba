"""`data-engine run`: the flags, then one rank's part of the job. Imports torch only after the flags are read."""

import importlib
import signal
from collections.abc import Sequence

from data_engine.commands.arguments import parse
from data_engine.processes import cpu_wait, stacks
from data_engine.processes.ranks import Ranks, is_launched, num_threads


def main(argv: Sequence[str]) -> int:
    """Run the job and return its exit code. Raises UserError naming each mistake in the flags."""
    config = parse(argv)
    stacks.dump_on_signal(signal.SIGUSR2)
    # Ranks of a launcher were told by it, before the first of them worked.
    if not is_launched():
        cpu_wait.apply(num_threads(config.threads, Ranks()))
    return importlib.import_module("data_engine.job.worker").run(config)
