"""Stands in for the command line: the real engine, in which each rank of a job gets a unit.

Else one that starts seconds before the others may do all the work of a small run, and nothing would be shared out.
A job with fewer free units than ranks would wait for ever.
"""

import sys
import time

from data_engine.commands import main
from data_engine.job import worker


def share_out() -> None:
    """Have a rank compute the first unit that it has claimed once each rank has claimed one."""
    submit = worker.Worker._submit

    def once_all_have_one(this: worker.Worker, *arguments: object) -> None:
        plan = this.plan
        there = plan.work_dir.with_name(f"{plan.work_dir.name}-there")
        there.mkdir(exist_ok=True)
        (there / str(plan.ranks.rank)).touch()
        while len(list(there.iterdir())) < plan.ranks.world_size:
            time.sleep(0.05)
        submit(this, *arguments)

    worker.Worker._submit = once_all_have_one


if __name__ == "__main__":
    if "run" in sys.argv[1:2]:
        share_out()
    sys.exit(main.main())
