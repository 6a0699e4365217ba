"""Tasks that each make one file or folder: two at a time, each a process of one thread; none again once it is done.

A task's command writes to a temporary place, which is renamed when it has ended well, so that the whole can be killed
at any point and started again.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

NUM_PROCESSES = 2


class Failed(Exception):
    """A command that did not end with 0."""


@dataclass(frozen=True)
class Task:
    """`commands(temporary)` are run one after the other; they write to `temporary`, which becomes `out`."""

    out: Path
    commands: Callable[[Path], Sequence[Sequence[str]]]
    needs: tuple[Path, ...] = ()
    weight: float = 1
    """about how long it takes, against the others"""
    resumes: bool = False
    """the commands go on from what is there in `temporary`"""

    @property
    def is_done(self) -> bool:
        return self.out.exists()

    def run(self, running: set[subprocess.Popen]) -> None:
        """Raises Failed with the end of what a failed command printed."""
        temporary = self.out.with_name(f".{self.out.name}.making")
        if not self.resumes:
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        log = self.out.with_name(f"{self.out.name}.log")
        with open(log, "w") as file:
            for command in self.commands(temporary):
                process = subprocess.Popen(
                    [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                )  # fmt: skip
                running.add(process)
                code = process.wait()
                running.discard(process)
                if code:
                    end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                    raise Failed(f"{' '.join(command)} ended with {code}; {log} ends with:\n{end}")
        temporary.rename(self.out)


def run_all(tasks: Sequence[Task]) -> None:
    """Run what is not done, in this order as far as needs allow. Raises Failed at the first that fails."""
    left = [task for task in tasks if not task.is_done]
    total, done, start = sum(task.weight for task in left), 0.0, time.monotonic()
    pending: dict[Future, Task] = {}
    running: set[subprocess.Popen] = set()
    with ThreadPoolExecutor(NUM_PROCESSES) as pool:
        try:
            while left or pending:
                for task in [task for task in left if all(need.exists() for need in task.needs)]:
                    if len(pending) < NUM_PROCESSES:
                        left.remove(task)
                        pending[pool.submit(task.run, running)] = task
                assert pending, f"tasks that wait for each other: {[task.out for task in left]}"
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    task = pending.pop(future)
                    future.result()
                    done += task.weight
                    elapsed_min = (time.monotonic() - start) / 60
                    left_min = elapsed_min * (total - done) / done
                    print(f"{elapsed_min:5.1f} min, about {left_min:.0f} min left: {task.out}", flush=True)
        finally:
            for process in list(running):
                process.terminate()
