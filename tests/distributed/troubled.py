"""Stands in for the command line: the real engine, whose rank 1 is ten times slower, and whose clocks jump.

Every beat of a claim dates it two hours ahead or back, as a host or file server would whose clock is set; the time of
day that the ranks see jumps likewise. Each rank gets a unit: see together.py.
"""

import itertools
import os
import sys
import time

from together import share_out

from data_engine.commands import main
from data_engine.pipeline import score
from data_engine.sampling.native import scheduler
from data_engine.store import claims

HOURS_S = 7200


def slow(module: object, name: str) -> None:
    original = getattr(module, name)

    def call(*arguments: object) -> object:
        start = time.perf_counter()
        result = original(*arguments)
        time.sleep(9 * (time.perf_counter() - start))
        return result

    setattr(module, name, call)


def jump() -> None:
    ahead, now = itertools.cycle([HOURS_S, -HOURS_S]), time.time
    time.time = lambda: now() + next(ahead)
    touch = os.utime

    def beat(path: object, *_: object) -> None:
        moment = time.time()
        touch(path, (moment, moment))

    claims.os.utime = beat
    claims.HEARTBEAT_S = 0.02


if __name__ == "__main__":
    if "run" in sys.argv[1:2]:
        share_out()
        jump()
        if os.environ.get("RANK") == "1":
            for function in (
                (scheduler.ModelRunner, "prefill"),
                (scheduler.ModelRunner, "next"),
                (score, "score_pass"),
            ):
                slow(*function)
    sys.exit(main.main())
