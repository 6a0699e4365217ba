"""How the ranks of a job coordinate: not at all, or in lock-step where they share split models.

Ranks that hold whole models share only files, and never wait for each other. Ranks that share a split model load it at
the same time, make each call of it at the same time, and change to the next model at the same time.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from data_engine.config import RunConfig
from data_engine.exit_codes import FAILED
from data_engine.models.base import Split
from data_engine.models.sharding.lock_step import FINISHED, IDLE, CallAgreement
from data_engine.models.sharding.placement import Decision
from data_engine.models.sharding.settings import read_settings, require_installed
from data_engine.models.sharding.zero3 import Zero3Split
from data_engine.processes.exit_report import report_exit
from data_engine.processes.heartbeats import Heartbeats
from data_engine.processes.ranks import Ranks, join_process_group
from data_engine.processes.signals import Stop, Stopped
from data_engine.stages import Stage, by_model

log = logging.getLogger(__name__)

POLL_S = 0.2


class Coordination(Protocol):
    """What the loop of a rank asks about the other ranks."""

    split: Split | None
    """how models are split; None where each rank holds whole ones"""

    def phases(self, stages: list[Stage]) -> list[list[Stage]]:
        """The stages in groups; one group is completed before the next begins."""

    def any(self, mine: bool) -> bool:
        """Whether it is true for any of the ranks that move together with this one."""

    def idle(self) -> None:
        """Call where no unit is free: waits a little, or takes part in the others' calls."""

    def finish(self) -> None:
        """Call at the end of a phase: takes part in the others' calls until all ranks are done."""


class Independent:
    """Ranks that hold whole models."""

    split = None

    def phases(self, stages: list[Stage]) -> list[list[Stage]]:
        return [stages]

    def any(self, mine: bool) -> bool:
        return mine

    def idle(self) -> None:
        # The owner of a claimed unit may have died; its claim then becomes free.
        time.sleep(POLL_S)

    def finish(self) -> None:
        pass


class LockStep:
    """Ranks that hold the same split model at the same time."""

    def __init__(self, agreement: CallAgreement, split: Split) -> None:
        self.agreement, self.split = agreement, split

    def phases(self, stages: list[Stage]) -> list[list[Stage]]:
        return list(by_model(stages))

    def any(self, mine: bool) -> bool:
        return self.agreement.any(mine)

    def idle(self) -> None:
        if self.agreement.take_part(IDLE) == IDLE:
            time.sleep(POLL_S)

    def finish(self) -> None:
        while self.agreement.take_part(FINISHED) != FINISHED:
            pass


@contextlib.contextmanager
def coordinate(
    config: RunConfig, decision: Decision, device: torch.device, ranks: Ranks, stop: Stop
) -> Iterator[Coordination]:
    """The coordination that `decision` requires. In lock-step, a call fails with LostRankError if a rank is lost."""
    if not decision.split:
        yield Independent()
        return
    require_installed()
    settings = read_settings(config.zero3_config)
    store = join_process_group(ranks, device.type)
    stop.polled = True

    def exit_process(message: str) -> None:
        log.error("%s; run the same command again to go on", message)
        report_exit(FAILED, Path(config.work_dir))
        os._exit(FAILED)

    with Heartbeats(store, ranks, exit_process).naming_lost_ranks():
        agreement = CallAgreement(stop.overdue, Stopped)
        yield LockStep(agreement, Zero3Split(settings, agreement, ranks.rank))
        dist.destroy_process_group()
