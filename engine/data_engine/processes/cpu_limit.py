"""How many CPU cores this process may keep busy: `python -m data_engine.processes.cpu_limit` prints it.

A container's CPU limit is a quota of time on all cores of the host. More threads than it pays for spend it early in
each period of 0.1 s, and stand still for the rest. launch/run_engine.sh asks: nproc does not count quotas.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from data_engine.processes import control_groups
from data_engine.processes.control_groups import GROUPS, MOUNTED


def num_cores(groups: Path = GROUPS, mounted: Path = MOUNTED) -> int:
    """Those that the process may run on, or as many as the least quota of its control groups pays for, rounded up."""
    return min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas(groups, mounted))])


def _quotas(groups: Path, mounted: Path) -> Iterator[float]:
    """In cores."""
    for folder, is_v2 in control_groups.folders("cpu", groups, mounted):
        names = ["cpu.max"] if is_v2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        # Where there is no quota, "max" is no number, and -1 is none either.
        with contextlib.suppress(OSError, ValueError):
            quota_us, period_us = map(int, " ".join((folder / name).read_text() for name in names).split())
            if quota_us > 0:
                yield quota_us / period_us


if __name__ == "__main__":
    print(num_cores())
