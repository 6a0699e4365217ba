"""The control groups that limit this process: those of a container, of Kubernetes, of SLURM."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def folders(controller: str, groups: Path, mounted: Path) -> Iterator[tuple[Path, bool]]:
    """Those of the process's groups, and of the groups that these are in; whether each is of version 2.

    A folder need not be there: in a container, the path of the process's own group may be one of the host, and its
    limits are then those of the root.
    """
    lines = []
    with contextlib.suppress(OSError):
        lines = groups.read_text().splitlines()
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mounted / controller if controllers else mounted
        inside = root / group.lstrip("/")
        for folder in (inside, *inside.parents):
            yield folder, not controllers
            if folder == root:
                break
