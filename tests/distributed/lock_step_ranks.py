"""Ranks with different work in lock-step: run by test_lock_step.py; prints JSON lines.

Arguments: how a rank ends ("none", "late", "kill", "freeze", "leave", "stop"), which, then a plan of calls for each
rank.
"""

import json
import os
import signal
import sys
import time
from functools import partial

from data_engine.errors import LostRankError
from data_engine.models.sharding import lock_step
from data_engine.processes import heartbeats
from data_engine.processes.heartbeats import Heartbeats
from data_engine.processes.ranks import Ranks, join_process_group
from data_engine.processes.signals import Stop

KINDS = {"decode": lock_step.DECODE, "encode": lock_step.ENCODE}
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


class Stopped(Exception):
    pass


def tell(**values: object) -> None:
    # One write, since the ranks share the pipe.
    os.write(1, (json.dumps({**values, "time": time.time()}) + "\n").encode())


def exit_process(message: str) -> None:
    """As the engine does where the main thread hangs in a collective."""
    tell(error="LostRankError", message=message)
    os._exit(3)


def work(plan: list[str], rank: int, death: str) -> None:
    log, result = [], []
    agreement = lock_step.CallAgreement(lambda: death == "stop" and len(log) > 6, Stopped)

    def dummy(name: str) -> None:
        # As the hook of a model that it calls does: this call is agreed on already.
        agreement.before(KINDS[name])
        log.append(f"dummy {name}")

    for name, kind in KINDS.items():
        agreement.register(kind, partial(dummy, name))
    for number, name in enumerate(plan):
        if number == 3 and death in (*SIGNALS, "leave"):
            tell(dies=death)
            if death == "leave":
                raise ValueError("a mistake that one rank alone sees")
            os.kill(os.getpid(), SIGNALS[death])
        agreement.before(KINDS[name])
        log.append(name)
        result.append(number)
    while agreement.take_part(lock_step.FINISHED) != lock_step.FINISHED:
        pass
    if death == "late":
        time.sleep(2 * heartbeats.BEAT_S)
    tell(rank=rank, log=log, result=result)


def main(death: str, dying: str, *plans: str) -> None:
    ranks = Ranks.from_environment()
    # Launchers ask the others to stop when one is lost; the engine's ranks then finish what they hold.
    Stop(grace_s=600).listen()
    if ranks.rank == 2:
        # Ranks do not notice at the same moment; by then, rank 0 must still be there.
        heartbeats.LOST_S += 2
    try:
        with Heartbeats(join_process_group(ranks, "cpu"), ranks, exit_process).naming_lost_ranks():
            work(plans[ranks.rank].split(), ranks.rank, death if ranks.rank == int(dying) else "none")
    except (LostRankError, Stopped) as error:
        tell(error=type(error).__name__, message=str(error))
        # As the engine does: nothing of the broken group is waited for.
        os._exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
