"""How far a run is, read from its work_dir alone: `data-engine status WORK_DIR`. Imports no torch.

Units are counted from the published files; pace comes from logs/rank-*.jsonl. Works while a run is going, from any
machine that sees the folder, over all ranks and shards.
"""

import contextlib
import itertools
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_engine.commands.work_dir import read_run, work_dir_argument
from data_engine.errors import UserError
from data_engine.models.adapter_folder import adapters_told
from data_engine.stages import RunStages
from data_engine.store import units
from data_engine.store.logs import duration, unit_lines

# A pace is the mean over a stage's last units, so that it follows a change of machines.
_RECENT_UNITS = 200
_CLOCKS_DIFFER_S = 60
_WATCH_S, _MAX_WATCH_S = 5.0, 86_400
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


@dataclass(frozen=True)
class Pace:
    """How fast a stage is computed: the mean of its last units, by the ranks that still work."""

    seconds_a_unit: float
    answers_a_second: float
    num_ranks: int
    """ranks that worked at the same time lately; 0 where none did"""


def main(argv: Sequence[str]) -> int:
    """Print the progress of one work_dir, once or repeatedly. Raises UserError where it is none."""
    every_s, rest = _watch_argument(list(argv))
    work_dir = work_dir_argument(
        "status",
        "Units done by stage, pace and time left; safe while the run is going. --watch shows it again every 5\n"
        "seconds, or as many as are given, until the dataset is written or Ctrl-C is pressed.",
        rest,
        options=" [--watch [SECONDS]]",
    )
    if work_dir is None:
        return 0
    if every_s is None:
        print(describe(work_dir, time.time()))
        return 0
    return watch(work_dir, every_s)


def watch(work_dir: Path, every_s: float) -> int:
    """Show the progress every `every_s` seconds until all is done: in place on a terminal, else block after block."""
    on_terminal = sys.stdout.isatty()
    # Ctrl-C ends the watching; it is no failure.
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            # Asked before the table is read, so that the last table shows the finished run.
            done = _is_done(work_dir)
            text = f"{time.strftime('%H:%M:%S')}  {describe(work_dir, time.time())}"
            # Cursor home, and clear to the end of the screen: less flicker than clearing first.
            print(f"\x1b[H\x1b[J{text}" if on_terminal else f"{text}\n", flush=True)
            if done:
                break
            time.sleep(every_s)
    return 0


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


def _is_done(work_dir: Path) -> bool:
    total = _planned_units(work_dir)["num_units"]
    return _is_written(work_dir) and all(
        units.published(work_dir, stage) >= set(range(total)) for stage in _stages(work_dir)
    )


def describe(work_dir: Path, now: float) -> str:
    """The table that `status` prints, for the unix time `now`."""
    planned = _planned_units(work_dir)
    total = planned["num_units"]
    # Lines dated in the future come from a clock that ran ahead; they would count as the latest until then.
    known = (line for line in unit_lines(work_dir) if line["time"] <= now + _CLOCKS_DIFFER_S)
    log = sorted(known, key=lambda line: line["time"])
    lines = [f"{work_dir}: {planned['num_questions']} questions in {total} units of {planned['unit_size']}"]
    lines += adapters_told(read_run(work_dir))
    lines.append(f"{'stage':<16}{'units':>15}{'':>6}{'ranks':>8}{'answers/s':>12}{'time left':>14}")
    for stage in _stages(work_dir):
        done = len(units.published(work_dir, stage) & set(range(total)))
        pace = _pace([line for line in log if line["stage"] == stage], now)
        row = f"{stage:<16}{f'{done}/{total}':>15}{_percent(done, total):>6}"
        if done < total:
            row += _pace_cells(pace, total - done)
        lines.append(row.rstrip())
    lines.append(f"{'pairs':<16}{_pairs_cell(work_dir):>15}")
    return "\n".join(lines)


def _stages(work_dir: Path) -> Iterable[str]:
    """The names of the run's stages, in their order."""
    return RunStages.of(read_run(work_dir).get("config", {})).by_name


def _planned_units(work_dir: Path) -> dict[str, int]:
    planned = read_run(work_dir)
    try:
        return {name: int(planned["units"][name]) for name in ("num_questions", "unit_size", "num_units")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'"{work_dir}/run.json" is not one of a run: {type(error).__name__}: {error}') from None


def _pace(lines: Sequence[dict], now: float) -> Pace | None:
    recent = lines[-_RECENT_UNITS:]
    seconds = sum(line["seconds"] for line in recent)
    if seconds <= 0:
        return None
    mean = seconds / len(recent)
    # A working rank logs a unit about every `mean` seconds; after five times that it counts as stopped.
    lately = [line for line in lines if line["time"] > now - max(60, 5 * mean)]
    num_ranks = _most_at_once(lately)
    return Pace(mean, sum(line["answers"] for line in recent) / seconds * num_ranks, num_ranks)


def _most_at_once(lines: Iterable[dict]) -> int:
    """How many units were worked on at the same moment; a rank that was started again has a second log."""
    ends = [(line["time"], -1) for line in lines]
    starts = [(line["time"] - line["seconds"], 1) for line in lines]
    # An end sorts before a start at the same moment.
    return max(itertools.accumulate(step for _, step in sorted(ends + starts)), default=0)


def _pace_cells(pace: Pace | None, num_left: int) -> str:
    if pace is None:
        return ""
    if pace.num_ranks == 0:
        return f"{0:>8}{'-':>12}{'stands still':>14}"
    left = duration(num_left * pace.seconds_a_unit / pace.num_ranks)
    return f"{pace.num_ranks:>8}{pace.answers_a_second:>12.1f}{left:>14}"


def _percent(done: int, total: int) -> str:
    # Rounded down: 100 % is only said of a whole stage.
    return f"{100 * done // total if total else 100} %"


def _pairs_cell(work_dir: Path) -> str:
    return "written" if _is_written(work_dir) else "not written"


def _is_written(work_dir: Path) -> bool:
    return any((work_dir / "dataset").glob("dpo_dataset*.parquet")) or _nothing_fits(work_dir)


def _nothing_fits(work_dir: Path) -> bool:
    """Whether pairs are written of which dataset/ can hold none, so that there is no dataset/."""
    if not (work_dir / "pairs/pairs.parquet").is_file():
        return False
    # Imported late: pyarrow and numpy would delay every call.
    from data_engine.pipeline.pair import read_funnel

    funnel = read_funnel(work_dir)
    return not funnel.written and bool(funnel.not_fitting or funnel.not_written)
