"""How much memory the process may have: all of the machine's, or the limit that a container, SLURM or a shell has set.

A process that takes more than its control group may is killed, whatever the machine has.
"""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from data_engine.processes import control_groups
from data_engine.processes.control_groups import GROUPS, MOUNTED


def memory_bytes(groups: Path = GROUPS, mounted: Path = MOUNTED) -> int:
    """The machine's memory, or the least limit of the process and of its control groups, whether free or not."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # ulimit -v, by which some schedulers and login nodes limit a process.
    of_process = resource.getrlimit(resource.RLIMIT_AS)[0]
    limited = [of_process] if of_process != resource.RLIM_INFINITY else []
    return min([machine, *limited, *_limits(groups, mounted)])


def _limits(groups: Path, mounted: Path) -> Iterator[int]:
    for folder, is_v2 in control_groups.folders("memory", groups, mounted):
        # Where there is no limit, "max" is no number.
        with contextlib.suppress(OSError, ValueError):
            yield int((folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")).read_text())
