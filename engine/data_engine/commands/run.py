"""`data-engine run`: the flags, then one rank's part of the job. Imports torch only after the flags are read."""

import importlib
import signal
from collections.abc import Sequence

from data_engine.commands.arguments import parse
from data_engine.processes import stacks


def main(argv: Sequence[str]) -> int:
    """Run the job and return its exit code. Raises UserError naming each mistake in the flags."""
    config = parse(argv)
    stacks.dump_on_signal(signal.SIGUSR2)
    return importlib.import_module("data_engine.job.worker").run(config)
