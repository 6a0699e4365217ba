"""How much memory this machine lets the process have: all of it, or the limit that a container or SLURM has set.

A process that takes more than its control group may is killed, whatever the machine has.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from data_engine.processes import control_groups
from data_engine.processes.control_groups import GROUPS, MOUNTED


def memory_bytes(groups: Path = GROUPS, mounted: Path = MOUNTED) -> int:
    """The machine's memory, or the least limit of the control groups that the process is in, whether free or not."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(groups, mounted)])


def _limits(groups: Path, mounted: Path) -> Iterator[int]:
    for folder, is_v2 in control_groups.folders("memory", groups, mounted):
        # Where there is no limit, "max" is no number.
        with contextlib.suppress(OSError, ValueError):
            yield int((folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")).read_text())
