"""What a start that leaves stages out needs of them. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from data_engine import stages
from data_engine.job import limit
from data_engine.stages import RunStages
from data_engine.store import units


def incomplete(work_dir: Path, run_stages: RunStages, first: int, unit_rows: Sequence[range], mine: range) -> list[str]:
    """What is told of each stage before `first`, --continue_from_stage, that is not complete.

    `mine` are the units of this job's shard, of all those in `unit_rows`. One that a smaller --limit has cut short is
    missing: it is left alone where it would not be computed again.
    """
    # Pairs are made of all units, whichever shard computed them.
    wanted = range(len(unit_rows)) if first == stages.PAIR else mine
    missing = {stage.name: units.missing(work_dir, stage.name, wanted)
               for stage in run_stages.between(stages.SAMPLE, first - 1)}  # fmt: skip
    if stages.SAMPLING.name in missing:
        short = limit.cut_short(work_dir, unit_rows) & {*wanted}
        missing[stages.SAMPLING.name] = sorted({*missing[stages.SAMPLING.name]} | short)
    return [
        f"continue_from_stage {first} needs all units of {name}, missing {len(numbers)} of {len(wanted)}: "
        f"{units.compressed(numbers)}; run the earlier stages first"
        for name, numbers in missing.items()
        if numbers
    ]
