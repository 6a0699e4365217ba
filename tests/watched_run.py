"""A made-up work_dir of a run that goes on, with claims, logs and warnings of ranks, and a terminal to watch it on."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyte

from data_engine.commands.work_dir import read_run
from data_engine.stages import RunStages
from data_engine.store import logs
from data_engine.store.process_identity import ProcessIdentity
from data_engine.watching.reader import Reader
from data_engine.watching.table import table

# When Looks looks first, by the clock of this machine, unless a test says otherwise.
NOW = 1_700_000_000.0
STAGES = tuple(RunStages().by_name)
ME = ProcessIdentity.of_this_process()
# Of another host, of which only signs of life tell.
FAR = replace(ME, host="node7", boot="elsewhere", pid=4242)
# No process has this number.
GONE = replace(ME, pid=(1 << 22) + 1, born="1")


def described(work_dir: Path, now: float) -> str:
    """The table that `status` prints at that unix time."""
    return table(Reader(work_dir).look(read_run(work_dir), now, time.monotonic()))


def make_run(work_dir: Path, num_units: int, done: dict[str, int]) -> Path:
    """A run of units of 8 questions, so many of them done by stage."""
    work_dir.mkdir(parents=True, exist_ok=True)
    planned = {"num_questions": num_units * 8, "unit_size": 8, "num_units": num_units}
    (work_dir / "run.json").write_text(json.dumps({"units": planned}))
    for stage, count in done.items():
        (work_dir / stage).mkdir()
        for unit in range(count):
            (work_dir / stage / f"unit-{unit:05d}.parquet").touch()
    return work_dir


def finish(work_dir: Path) -> None:
    """Publish what is missing of every stage, and the dataset."""
    total = json.loads((work_dir / "run.json").read_text())["units"]["num_units"]
    for stage in STAGES:
        (work_dir / stage).mkdir(exist_ok=True)
        for unit in range(total):
            (work_dir / stage / f"unit-{unit:05d}.parquet").touch()
    (work_dir / "dataset").mkdir()
    (work_dir / "dataset/dpo_dataset.parquet").touch()


def unit_line(time: float, stage: str = "sampled_answer", seconds: float = 10.0, answers: int = 80) -> dict:
    return {"time": time, "stage": stage, "unit": 0, "seconds": seconds, "questions": 8, "answers": answers}


def started(time: float, process: ProcessIdentity, rank: int, shard: tuple[int, int] = (0, 1), age_s: float = 0):
    return {"time": time, "rank": rank, "process": vars(process), "shard": list(shard), "began": time - age_s}


def log(work_dir: Path, process: ProcessIdentity, rank: int, *lines: dict) -> Path:
    """Add lines to the log of a process."""
    path = work_dir / "logs" / logs.log_name(process, rank)
    for line in lines:
        logs.append(path, line)
    return path


def write_log(work_dir: Path, rank: int, *lines: dict | str) -> None:
    """A whole log of a rank, whatever its lines are."""
    (work_dir / "logs").mkdir(exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (work_dir / f"logs/rank-{rank}.jsonl").write_text(text)


def claim(work_dir: Path, process: ProcessIdentity, rank: int, stage: str, unit: int, touched: float) -> Path:
    """A claim, touched last at that unix time."""
    (work_dir / "claims").mkdir(exist_ok=True)
    path = work_dir / "claims" / f"{stage}-{unit:05d}.json"
    path.write_text(json.dumps({**vars(process), "rank": rank, "claim": "ab"}))
    os.utime(path, (touched, touched))
    return path


def busy_run(work_dir: Path) -> Path:
    """40 units, of which stage 0 is done and 10 of stage 1: rank 0 works, rank 1 has died, rank 2 is stalled."""
    make_run(work_dir, 40, {"sampled_answer": 40, "instruct_logps": 10})
    now = time.time()
    for rank, process in enumerate((ME, GONE, FAR)):
        ago = 300 if rank == 2 else 5
        log(work_dir, process, rank, started(now - 900, process, rank), unit_line(now - ago, "instruct_logps"))
    claim(work_dir, ME, 0, "instruct_logps", 10, now)
    claim(work_dir, FAR, 2, "instruct_logps", 11, now - 300)
    warn(work_dir, "row 7 cannot be read")
    return work_dir


def warn(work_dir: Path, message: str, level: str = "warning") -> None:
    log(work_dir, ME, 0, {"time": time.time(), "level": level, "message": message})


class Looks:
    """Looks at a work_dir, at times that the test says."""

    def __init__(self, work_dir):
        self.work_dir, self.reader = work_dir, Reader(work_dir)

    def at(self, seconds: float = 0.0, clock: float | None = None):
        """`seconds` after the first look, when the clock of this machine says so too, or `clock`."""
        run_file = json.loads((self.work_dir / "run.json").read_text())
        return self.reader.look(run_file, NOW + seconds if clock is None else clock, 1000.0 + seconds)


class Screen(pyte.Screen):
    """pyte's screen, with the alternate one that it has not: what was there comes back when it is left."""

    is_alternate = False

    def set_mode(self, *modes, **kwargs):
        super().set_mode(*modes, **kwargs)
        if 1049 in modes and not self.is_alternate:
            self.is_alternate, self._below = True, (self.display, self.cursor.y, self.cursor.x)
            self.erase_in_display(2)

    def reset_mode(self, *modes, **kwargs):
        super().reset_mode(*modes, **kwargs)
        if 1049 in modes and self.is_alternate:
            self.is_alternate, (lines, y, x) = False, self._below
            self.erase_in_display(2)
            for at, line in enumerate(lines[: self.lines]):
                self.cursor_position(at + 1, 1)
                self.draw(line.rstrip())
            self.cursor_position(y + 1, x + 1)


# A shell would have made the terminal that of the process, and the process its foreground.
_OWN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A real terminal with a real command on it, and what it shows."""

    def __init__(self, *arguments: str, size: tuple[int, int] = (80, 24), command=("-m", "data_engine"), **environment):
        self.screen = Screen(*size)
        self.stream = pyte.ByteStream(self.screen)
        self.ours, self._theirs = pty.openpty()
        self._set_size(size)
        self.modes = termios.tcgetattr(self._theirs)
        self.received = b""
        self.screen.draw("$ data-engine ...")
        self.screen.linefeed()
        self.screen.carriage_return()
        environment = os.environ | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | environment
        for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR"):
            if name not in environment or environment[name] == "":
                environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN_TERMINAL, sys.executable, *command, *arguments],
            stdin=self._theirs, stdout=self._theirs, stderr=self._theirs, start_new_session=True, env=environment,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)

    def _set_size(self, size: tuple[int, int]) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """As the window of the terminal is drawn larger or smaller: the kernel sends SIGWINCH."""
        self.screen.resize(lines, columns)
        # What the command does not draw anew is lost.
        self.screen.erase_in_display(2)
        self._set_size((columns, lines))

    def press(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def shows(self, is_so: Callable[[list[str]], bool], within_s: float = 30.0) -> list[str]:
        """The lines of the screen once they are so; fails where they are not in time."""
        deadline = time.monotonic() + within_s
        while not is_so(self.screen.display):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.ours], [], [], max(0, left))
            assert ready, "\n".join(["the screen is not so:", *self.screen.display])
            self._feed()
        return self.screen.display

    def ended(self) -> int:
        """The exit code, once the process has ended and all that it wrote is on the screen."""
        while self.process.poll() is None:
            if select.select([self.ours], [], [], 0.05)[0]:
                self._feed()
        while select.select([self.ours], [], [], 0)[0]:
            self._feed()
        return self.process.returncode

    def _feed(self) -> None:
        data = os.read(self.ours, 65536)
        self.received += data
        self.stream.feed(data)

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def is_as_it_was(self) -> bool:
        """Whether modes, cursor and screen are those from before the command."""
        own = termios.tcgetattr(self._theirs)
        return own == self.modes and not self.screen.cursor.hidden and not self.screen.is_alternate
