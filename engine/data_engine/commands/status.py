"""How far a run is, read from its work_dir alone: `data-engine status WORK_DIR`. Imports no torch.

watching/ reads and shows; this file has the arguments.
"""

import functools
import re
import time
from collections.abc import Sequence
from pathlib import Path

from data_engine.commands.examples import shown
from data_engine.commands.work_dir import given_path, has_not_begun, read_run, told_of_disk
from data_engine.errors import UserError, nearest
from data_engine.watching import as_json, lines, table
from data_engine.watching.progress import Progress
from data_engine.watching.reader import Reader

USAGE = "usage: data-engine status WORK_DIR [--watch [SECONDS]] [--json]"
DESCRIPTION = """\
Units done by stage, pace and time left; safe while the run is going. --watch shows it again every 5
seconds, or as many as are given, until the dataset is written or q or Ctrl-C is pressed. --json: an object
for programs, docs/watching.md; with --watch one a line."""
_WATCH_S, _MAX_WATCH_S = 5.0, 86_400
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


def main(argv: Sequence[str]) -> int:
    """Print the progress of one work_dir, once or repeatedly. Raises UserError where it is none."""
    every_s, rest = _watch_argument(list(argv))
    wants_json, rest = "--json" in rest, [word for word in rest if word != "--json"]
    if {"-h", "--help"} & set(rest):
        print(f"{USAGE}\n\n{DESCRIPTION}\n\n{shown('status')}")
        return 0
    work_dir = _work_dir(rest)
    show = as_json.as_json if wants_json else table.table
    look = _looking(work_dir)
    if every_s is None:
        print(show(look()))
        return 0
    if not lines.waits_for_start(functools.partial(has_not_begun, work_dir), every_s):
        return 0
    if wants_json or not lines.can_draw():
        return lines.watch_lines(look, every_s, as_json.as_json if wants_json else lines.block)
    # Imported late: rich is of use on a screen alone.
    from data_engine.watching.screen import watch_screen

    return watch_screen(look, every_s)


def _looking(work_dir: Path) -> lines.Look:
    """A function that looks at a work_dir now, and remembers what it has read. It raises UserError where it cannot."""
    reader = Reader(work_dir)

    def look() -> Progress:
        with told_of_disk(work_dir):
            return reader.look(read_run(work_dir), time.time(), time.monotonic())

    return look


def _work_dir(argv: Sequence[str]) -> Path:
    """The only argument that is left, once the options are taken. Raises UserError for anything else."""
    for word in argv:
        flag = word.partition("=")[0]
        if flag in ("--watch", "--json"):
            raise UserError(f"{flag} {'takes no value' if flag == '--json' else 'is given twice'}; {USAGE}")
        if word.startswith("--"):
            raise UserError(f"unknown flag {flag}{nearest(flag.removeprefix('--'), ('watch', 'json'), '--')}; {USAGE}")
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError(f'status takes one WORK_DIR, got "{" ".join(argv)}"; {USAGE}')
    return given_path("WORK_DIR", argv[0])


def _watch_argument(argv: list[str]) -> tuple[float | None, list[str]]:
    """The seconds of --watch, None without it, and the other arguments."""
    at = next((at for at, word in enumerate(argv) if word == "--watch" or word.startswith("--watch=")), None)
    if at is None:
        return None, argv
    _, given, value = argv[at].partition("=")
    rest = argv[at + 1 :]
    # The word after --watch is its value if it is a number and another word is left for WORK_DIR.
    if not given and rest and len(argv) > 2 and _NUMBER.fullmatch(rest[0]):
        given, value = "=", rest.pop(0)
    seconds = float(value) if _NUMBER.fullmatch(value) else (0.0 if given else _WATCH_S)
    if not 0 < seconds <= _MAX_WATCH_S:
        raise UserError(f'--watch takes seconds, more than 0 and at most {_MAX_WATCH_S}, got "{value}"')
    return seconds, argv[:at] + rest
