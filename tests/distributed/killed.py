"""Stands in for the command line: the real engine, in which one rank kills itself (SIGKILL) at a chosen place.

$KILL_WINDOW names the place, $KILL_AT how many times it is passed before; the kill is noted in $KILL_LOG first. Another
rank that comes there waits for the kill: else it might do all the work before the one that is to die has any. Where
$ONE_QUEUE_LOG is set, the engine takes the path of a GPU: see one_queue.py.
"""

import os
import signal
import sys
import time
from pathlib import Path

from one_queue import take_the_path_of_a_gpu

from data_engine.commands import main
from data_engine.exports.formats import rlaif_v
from data_engine.pipeline import judge, score
from data_engine.questions import given_answers
from data_engine.sampling.native import scheduler
from data_engine.scoring import logprobs
from data_engine.store import units

WINDOW, RANK = os.environ.get("KILL_WINDOW"), os.environ.get("RANK", "0")
DIES = os.environ.get("KILL_RANK", "0") == RANK
# After this time the others go on, and the test fails for the kill that did not come.
PATIENCE_S = 60


def die_or_wait() -> None:
    path = Path(os.environ["KILL_LOG"])
    if DIES:
        with open(path, "a") as log:
            log.write(f"{WINDOW}\n")
            log.flush()
            os.fsync(log.fileno())
        os.kill(os.getpid(), signal.SIGKILL)
    end = time.monotonic() + PATIENCE_S
    while not (path.exists() and WINDOW in path.read_text().splitlines()) and time.monotonic() < end:
        time.sleep(0.05)


class Countdown:
    def __init__(self) -> None:
        self.left = int(os.environ.get("KILL_AT", "0"))

    def passed(self) -> bool:
        self.left -= 1
        return self.left < 0


def before(module: object, name: str, window: str, countdown: Countdown) -> None:
    """Die, or wait, when `module.name` is called, before it does anything."""
    original = getattr(module, name)

    def wrapped(*arguments: object, **options: object) -> object:
        if window == WINDOW and countdown.passed():
            die_or_wait()
        return original(*arguments, **options)

    setattr(module, name, wrapped)


def install(countdown: Countdown) -> None:
    before(scheduler.Scheduler, "_step", "sampling", countdown)
    before(score, "score_pass", "scoring", countdown)
    before(judge, "last_hidden", "judging", countdown)
    before(given_answers, "move_in_once", "copying", countdown)
    before(rlaif_v, "write_files", "dataset writing", countdown)
    write, link = units.write_sealed, os.link

    def write_half(table: object, path: Path, facts: dict) -> None:
        write(table, path, facts)
        if WINDOW == "mid-write" and countdown.passed():
            if DIES:
                os.truncate(path, os.path.getsize(path) // 2)
            die_or_wait()

    def link_or_die(source: Path, target: Path) -> None:
        is_unit = units.UNIT_FILE.fullmatch(Path(target).name)
        if is_unit and WINDOW == "before rename" and countdown.passed():
            die_or_wait()
        link(source, target)
        if is_unit and WINDOW == "after rename" and countdown.passed():
            die_or_wait()

    units.write_sealed = write_half
    units.os.link = link_or_die


assert logprobs  # imported before score takes its function from it
if __name__ == "__main__":
    if "run" in sys.argv[1:2]:
        install(Countdown())
    if "run" in sys.argv[1:2] and "ONE_QUEUE_LOG" in os.environ:
        take_the_path_of_a_gpu()
    sys.exit(main.main())
