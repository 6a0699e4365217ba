"""How the ranks of a job are coordinated: not at all, or in lock-step where they share split models.

Ranks that hold whole models share nothing but files, and none waits for another. Ranks that share a split model load it
together, make each call of it together, and go on to the next model together.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from data_engine.config import RunConfig
from data_engine.models.base import pick_device
from data_engine.models.sharding.lock_step import FINISHED, IDLE, LockStep
from data_engine.models.sharding.placement import Decision
from data_engine.models.sharding.settings import read_settings, require_installed
from data_engine.models.sharding.zero3 import Split
from data_engine.processes.exit_report import report_exit
from data_engine.processes.heartbeats import Lifeline
from data_engine.processes.ranks import Ranks, meet
from data_engine.processes.signals import Stop, Stopped
from data_engine.stages import Stage, by_model

log = logging.getLogger(__name__)

POLL_S = 0.2


class Coordination(Protocol):
    """What a job asks of the way its ranks go along."""

    split: Split | None
    """how models are split; None where each rank holds them whole"""

    def phases(self, stages: list[Stage]) -> list[list[Stage]]:
        """The stages in groups, one after the other."""

    def any(self, mine: bool) -> bool:
        """Whether it holds for any rank that this one has to go along with."""

    def idle(self) -> None:
        """Nothing is free at the moment: wait a little, or help the others."""

    def finish(self) -> None:
        """This rank is done with a phase: help the others until they are."""


class Independent:
    """Each rank for itself."""

    split = None

    def phases(self, stages: list[Stage]) -> list[list[Stage]]:
        return [stages]

    def any(self, mine: bool) -> bool:
        return mine

    def idle(self) -> None:
        # The owner of a unit may have died, so that it becomes free.
        time.sleep(POLL_S)

    def finish(self) -> None:
        pass


class LockStepRanks:
    """All ranks hold the same split model at the same time."""

    def __init__(self, step: LockStep, split: Split) -> None:
        self.step, self.split = step, split

    def phases(self, stages: list[Stage]) -> list[list[Stage]]:
        return list(by_model(stages))

    def any(self, mine: bool) -> bool:
        return self.step.any(mine)

    def idle(self) -> None:
        if self.step.rest(IDLE) == IDLE:
            time.sleep(POLL_S)

    def finish(self) -> None:
        while self.step.rest(FINISHED) != FINISHED:
            pass


@contextlib.contextmanager
def joined(config: RunConfig, decision: Decision, ranks: Ranks, stop: Stop) -> Iterator[Coordination]:
    """The way that `decision` asks for. Inside, a lost rank raises LostRankError where the others need it."""
    if not decision.split:
        yield Independent()
        return
    require_installed()
    settings = read_settings(config.zero3_config)
    store = meet(ranks, pick_device(ranks.device(config.device)).type)
    stop.polled = True

    def end(finding: str) -> None:
        log.error("%s; run the same command again to go on", finding)
        report_exit(1, Path(config.work_dir))
        os._exit(1)

    with Lifeline(store, ranks, end).naming():
        step = LockStep(stop.overdue, Stopped)
        yield LockStepRanks(step, Split(settings, step, ranks.rank))
        dist.destroy_process_group()
