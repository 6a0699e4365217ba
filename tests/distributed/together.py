"""Stands in for the command line: the real engine, whose ranks begin to work at the same moment.

Else one that starts seconds before the others may do all the work of a small run, and nothing would be shared out.
"""

import sys
import time

from data_engine.commands import main
from data_engine.job import worker


def begin_together(this: worker.Worker, coordination: object, work=worker.Worker.work) -> bool:
    plan = this.plan
    there = plan.work_dir.with_name(f"{plan.work_dir.name}-there")
    there.mkdir(exist_ok=True)
    (there / str(plan.ranks.rank)).touch()
    while len(list(there.iterdir())) < plan.ranks.world_size:
        time.sleep(0.05)
    return work(this, coordination)


if __name__ == "__main__":
    if "run" in sys.argv[1:2]:
        worker.Worker.work = begin_together
    sys.exit(main.main())
