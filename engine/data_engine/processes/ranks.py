"""Which rank of how many this is, what ends a rank early, and how it says so. The only reader of RANK and its kin."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_engine.schemas import UserError
from data_engine.store.logs import append

STOPPED = 75
# A launcher may pass on a signal that this rank got already; the same wish again within this time is no second one.
SAME_SIGNAL_S = 2.0
# Stopped is raised once more after so long, as long as the work goes on all the same.
AGAIN_S = 5.0


@dataclass(frozen=True)
class Ranks:
    """This process's place in its job."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """As torchrun and accelerate set it; alone without them.

        Raises UserError where NUM_PROCESSES, which launch/run_engine.sh sets, asked for more ranks than were started.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        ranks = cls(*(int(os.environ.get(name, default)) for name, default in zip(names, "0101", strict=True)))
        asked = os.environ.get("NUM_PROCESSES") if "DATA_ENGINE_EXIT_FILE" in os.environ else None
        if asked and int(asked) > ranks.local_world_size:
            raise UserError(
                f"{asked} ranks were asked for, {ranks.local_world_size} started: the accelerate config must say "
                "`distributed_type: MULTI_GPU` (with `use_cpu: true` on CPU), as launch/accelerate/cpu.yaml does"
            )
        return ranks

    def device(self, asked: str) -> str:
        """A rank's own GPU where "auto" or plain "cuda" leaves the choice."""
        import torch

        return f"cuda:{self.local_rank}" if asked in ("auto", "cuda") and torch.cuda.is_available() else asked


def meet(ranks: Ranks, device_type: str):
    """Join all ranks of the job into torch's process group; a store that rank 0 serves, for as long as it lives.

    Not the launcher's store: launch/supervise.py holds the launcher still while its ranks stop.
    """
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    if ranks.world_size == 1 and "MASTER_ADDR" not in os.environ:
        # No launcher: what DeepSpeed reads of one.
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
        os.environ.update(alone)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return dist.HashStore()
    dist.init_process_group(backend)
    host, port = os.environ["MASTER_ADDR"], [0]
    if ranks.rank == 0:
        served = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        port = [served.port]
    dist.broadcast_object_list(port, group=dist.new_group(backend="gloo"), device="cpu")
    return served if ranks.rank == 0 else dist.TCPStore(host, port[0], is_master=False)


def set_threads(threads: int | None, ranks: Ranks) -> None:
    """CPU threads of this rank: as asked, else OMP_NUM_THREADS, else an equal share of the cores."""
    import torch

    from_environment = os.environ.get("OMP_NUM_THREADS", "")
    if threads is None and from_environment.isdigit() and int(from_environment):
        threads = int(from_environment)
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size))


def set_device(device) -> None:
    """Make a rank's `torch.device` the current one: what libraries make without being told where goes there."""
    import torch

    if device.type == "cuda":
        torch.cuda.set_device(device)


class Stopped(BaseException):
    """The grace time after a signal is over: drop the unit in hand."""


class Stop:
    """Whether a signal asked this rank to stop. A second one exits at once.

    SIGTERM, SIGINT and SIGUSR1 set `wanted`; after `grace_s` seconds Stopped is raised in the main thread, unless
    `polled` is set: then it is for the main thread to ask `overdue`, between calls that it must not break off.
    """

    def __init__(self, grace_s: float) -> None:
        self.wanted: str | None = None
        self.polled = False
        self._grace_s, self._since = grace_s, 0.0

    def listen(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.wanted is None:
            self.wanted, self._since = signal.Signals(number).name, time.monotonic()
            self._arm()
        elif time.monotonic() - self._since > SAME_SIGNAL_S:
            _report(code=STOPPED)
            os._exit(STOPPED)

    def _on_alarm(self, _number: int, _frame: object) -> None:
        if not self.polled:
            raise Stopped

    def overdue(self) -> bool:
        """Whether the grace time after a signal is over."""
        return self.wanted is not None and time.monotonic() - self._since > self._grace_s

    def _arm(self) -> None:
        left = max(1e-3, self._since + self._grace_s - time.monotonic())
        # Again and again, since an exception that comes up in a destructor is lost.
        signal.setitimer(signal.ITIMER_REAL, left, AGAIN_S)

    def disarm(self) -> None:
        """No Stopped from here on: the work has ended anyhow. A last one may still come out of this call."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """No Stopped inside: what is being published is published whole."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            yield
        finally:
            if self.wanted:
                self._arm()


def _report(**values: int) -> None:
    """Append a line to the file that the launch script reads, which no signal or crash of another rank can lose."""
    path = os.environ.get("DATA_ENGINE_EXIT_FILE")
    if path:
        with contextlib.suppress(FileNotFoundError), open(path, "a") as file:
            file.write(json.dumps({"rank": int(os.environ.get("RANK", 0)), **values}) + "\n")


def announce() -> None:
    """Tell the launch script which process this rank is: from now on it may be signalled."""
    _report(pid=os.getpid())


def report_exit(code: int, work_dir: Path) -> None:
    """Leave this rank's exit code for the launch script, and in logs/exit.json for people."""
    _report(code=code)
    with contextlib.suppress(OSError):
        line = {"time": time.time(), "rank": int(os.environ.get("RANK", 0)), "code": code, "arguments": sys.argv[1:]}
        append(work_dir / "logs" / "exit.json", line)
