"""Ranks with different work in lock-step: run by test_lock_step.py under torchrun; prints one JSON line a rank."""

import json
import os
import signal
import sys
import time

import torch.distributed as dist

from data_engine.models import zero3

WISHES = {"decode": zero3.DECODE, "encode": zero3.ENCODE}


def tell(**values: object) -> None:
    # One write, since the ranks share the pipe.
    os.write(1, (json.dumps(values) + "\n").encode())


class Stopped(Exception):
    pass


def main(plans: list[str], death: str) -> None:
    dist.init_process_group("gloo")
    rank, log = dist.get_rank(), []
    lock_step = zero3.LockStep(lambda: death == "stop" and rank == 1 and len(log) > 6, Stopped)
    for name, kind in WISHES.items():
        lock_step.register(kind, lambda name=name: log.append(f"dummy {name}"))
    result = []
    for number, name in enumerate(plans[rank].split()):
        if death == "kill" and rank == 1 and number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        result.append(lock_step.call(WISHES[name], lambda name=name, number=number: log.append(name) or number))
    while lock_step.rest(zero3.FINISHED) != zero3.FINISHED:
        pass
    tell(rank=rank, log=log, result=result)


if __name__ == "__main__":
    start = time.monotonic()
    try:
        main(sys.argv[2:], sys.argv[1])
    except (zero3.RankLost, Stopped) as error:
        tell(error=type(error).__name__, seconds=time.monotonic() - start)
        # As the engine does: nothing of the broken group is waited for.
        os._exit(3)
