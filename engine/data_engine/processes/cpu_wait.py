"""How OpenMP's threads wait for each other on the CPU: spinning while cores are free, asleep beside other work.

Two threads that spin beside another process are many times slower than two that sleep; on a quiet machine spinning is
about a fifth faster. The variable counts before torch is imported. The number of threads stays as it is: it decides the
last bits of a result.
"""

import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from data_engine.processes import cpu_limit

VARIABLE = "OMP_WAIT_POLICY"
# A user who has set one of these has chosen.
CHOSEN_BY = (VARIABLE, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
LOOK_S = 0.3
# So much of a core may be busy beside the threads.
SPARE = 0.5
STAT = Path("/proc/stat")


def choose(environment: Mapping[str, str], num_threads: int, stat: Path = STAT) -> str | None:
    """Why threads should sleep while they wait, or None where they may spin. Looks at the load for LOOK_S.

    Call it before the ranks start, or they take each other for other work. `num_threads` are those of all ranks.
    """
    if any(name in environment for name in CHOSEN_BY):
        return None
    allowed, cores = cpu_limit.num_cores(), os.sched_getaffinity(0)
    if num_threads > allowed:
        return f"{num_threads} threads share {allowed} cores"
    before = _times(stat, cores)
    time.sleep(LOOK_S)
    busy = busy_cores(before, _times(stat, cores))
    if num_threads > 1 and busy + num_threads > len(cores) + SPARE:
        return f"other work keeps {busy:.1f} of {len(cores)} cores busy"
    return None


def busy_cores(before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]]) -> float:
    """How many cores were busy between two looks; of each core (idle, all) clock ticks since boot."""
    busy = 0.0
    for core in before.keys() & after.keys():
        idle, total = (now - then for then, now in zip(before[core], after[core], strict=True))
        busy += 1 - idle / total if total > 0 else 0
    return busy


def _times(stat: Path, cores: Collection[int]) -> dict[int, tuple[int, int]]:
    """(idle, all) clock ticks of each core; nothing where the system does not tell."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for name, *values in map(str.split, filter(None, lines)):
        number = name.removeprefix("cpu")
        if number.isdecimal() and int(number) in cores:
            # user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user time.
            ticks = list(map(int, values[:8]))
            found[int(number)] = (ticks[3] + ticks[4], sum(ticks))
    return found


def apply(num_threads: int) -> None:
    """Set the variable for this process and those that it starts, and say so, where other work needs the cores."""
    if reason := choose(os.environ, num_threads):
        os.environ[VARIABLE] = "PASSIVE"
        os.write(2, f"{VARIABLE}=PASSIVE: {reason}, so waiting threads sleep instead of spinning\n".encode())
