"""Ranks of the real engine, forked, that tell where they are and do themselves harm there: what chaos.py starts.

A rank's window is the part of its work that it is in; dying in each leaves something different behind.
"""

import collections
import mmap
import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """What one rank of a start does to itself: die in a window, or find the disk failing, at the nth time."""

    rank: int
    window: str | None = None
    operation: str | None = None
    number: int = 0
    after: int = 0


class Rank:
    """A forked rank; its window is read from shared memory, since a killed process cannot tell."""

    def __init__(
        self, flags: list[str], rank: int, world_size: int, fault: Fault | None, log: Path, one_queue: bool = False,
        command: str = "run",
    ) -> None:  # fmt: skip
        """With `one_queue`, it takes the path of a GPU: see one_queue.py. Another `command` than run is no rank."""
        self.window, self.command = mmap.mmap(-1, 64), command
        self.pid = os.fork()
        if self.pid == 0:
            self._be_a_rank(flags, rank, world_size, fault, log, one_queue)

    def _be_a_rank(
        self, flags: list[str], rank: int, world_size: int, fault: Fault | None, log: Path, one_queue: bool
    ) -> None:
        code = 70
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
            os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
            if one_queue:
                from one_queue import take_the_path_of_a_gpu

                take_the_path_of_a_gpu()
            _install(self.window, fault)
            from data_engine.commands import main

            code = main.main([self.command, *flags])
        finally:
            os._exit(code)

    def where(self) -> str:
        return self.window[:].rstrip(b"\0").decode()


class Saboteur:
    """Tells the window that this process is in, and does what the fault says."""

    def __init__(self, shared: mmap.mmap, fault: Fault | None) -> None:
        self.shared, self.fault, self.passed = shared, fault, collections.Counter()

    def enter(self, window: str) -> None:
        self.shared[:] = window.encode().ljust(64, b"\0")
        if self.fault and self.fault.window == window and self._passed(window):
            os.kill(os.getpid(), signal.SIGKILL)

    def fail(self, operation: str) -> None:
        if self.fault and self.fault.operation == operation and self._passed(operation):
            raise OSError(self.fault.number, os.strerror(self.fault.number), "a path")

    def _passed(self, what: str) -> bool:
        self.passed[what] += 1
        return self.passed[what] > self.fault.after

    def inside(self, module: object, name: str, window: str, then: str = "") -> None:
        """From now on, `module.name` runs in `window`; `then` is the one behind it."""
        original = getattr(module, name)

        def wrapped(*arguments, **options):
            self.enter(window)
            try:
                return original(*arguments, **options)
            finally:
                self.enter(then)

        setattr(module, name, wrapped)

    def inside_each(self, module: object, name: str, window: str) -> None:
        """The same for a generator, which is in `window` while it makes its next item."""
        original = getattr(module, name)

        def wrapped(*arguments):
            items, nothing = original(*arguments), object()
            while True:
                self.enter(window)
                try:
                    item = next(items, nothing)
                finally:
                    self.enter("")
                if item is nothing:
                    return
                yield item

        setattr(module, name, wrapped)


def _install(shared: mmap.mmap, fault: Fault | None) -> None:
    from data_engine.pipeline import pair, passes, runner, sample
    from data_engine.store import claims, folders, units

    saboteur = Saboteur(shared, fault)
    saboteur.inside(runner.UnitByUnit, "poll", "model working")
    saboteur.inside(passes.AnswerRunner, "poll", "model working")
    saboteur.inside(sample.SamplingRunner, "poll", "model working")
    saboteur.inside(claims.Claims, "_create", "claiming")
    saboteur.inside(pair, "run", "pairing")
    saboteur.inside(folders, "sync_files", "pairing", then="swapping the dataset in")
    write, link, replace, fsync = units.write_sealed, os.link, os.replace, os.fsync

    def write_in_halves(table, path, facts) -> None:
        write(table, path, facts)
        content = path.read_bytes()
        os.truncate(path, len(content) // 2)
        saboteur.fail("write")
        saboteur.enter("mid-write")
        path.write_bytes(content)
        saboteur.enter("before rename")

    def link_unit(source, target) -> None:
        saboteur.fail("rename")
        link(source, target)
        if units.UNIT_FILE.fullmatch(Path(target).name):
            saboteur.enter("after rename")

    def rename(source, target) -> None:
        saboteur.fail("rename")
        if Path(target).name == "index.html":
            saboteur.enter("writing the report")
        replace(source, target)

    def sync(descriptor) -> None:
        saboteur.fail("fsync")
        fsync(descriptor)

    units.write_sealed, os.link, os.replace, os.fsync = write_in_halves, link_unit, rename, sync
