"""How much memory this machine lets the process have: all of it, or the limit that a container or SLURM has set.

A process that takes more than its control group may is killed, whatever the machine has.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def memory_bytes(groups: Path = GROUPS, mounted: Path = MOUNTED) -> int:
    """The machine's memory, or the least limit of the control groups that the process is in, whether free or not."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(groups, mounted)])


def _limits(groups: Path, mounted: Path) -> Iterator[int]:
    """Those of the process's groups, and of the groups that these are in; of both versions of the interface."""
    lines = []
    with contextlib.suppress(OSError):
        lines = groups.read_text().splitlines()
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = (mounted / "memory", "memory.limit_in_bytes") if controllers else (mounted, "memory.max")
        inside = root / group.lstrip("/")
        # In a container the group's own path may not be there, and its limit is that of the root.
        for folder in (inside, *inside.parents):
            # Where there is no limit, "max" is no number.
            with contextlib.suppress(OSError, ValueError):
                yield int((folder / name).read_text())
            if folder == root:
                break
