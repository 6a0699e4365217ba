"""The plain table of `status`: lines of text for any terminal, pipe or file."""

from data_engine.duration import duration
from data_engine.plural import plural
from data_engine.watching.inert import inert
from data_engine.watching.progress import TROUBLED, WRITTEN, Progress, RankProgress, StageProgress

# Ranks that are told of; the others are counted.
MOST_RANKS = 20


def table(progress: Progress) -> str:
    """What `status` prints."""
    counts = f"{plural(progress.num_questions, 'question')} in {plural(progress.num_units, 'unit')}"
    lines = [f"{progress.work_dir}: {counts} of {progress.unit_size}"]
    lines += progress.adapters
    lines.append(f"{'stage':<16}{'units':>15}{'':>6}{'ranks':>8}{'answers/s':>12}{'time left':>14}")
    for stage in progress.stages:
        row = f"{stage.name:<16}{f'{stage.done}/{stage.total}':>15}{percent(stage.done, stage.total):>6}"
        lines.append(f"{row}{_pace_cells(stage) if stage.left else ''}".rstrip())
    lines.append(f"{'pairs':<16}{'written' if progress.pairs == WRITTEN else 'not written':>15}")
    told = [rank for rank in progress.ranks if rank.state in TROUBLED or rank.error is not None]
    lines += map(_trouble, told[:MOST_RANKS])
    if len(told) > MOST_RANKS:
        lines.append(f"{plural(len(told) - MOST_RANKS, 'more rank')} in trouble: --json has all of them")
    return "\n".join(lines)


def percent(done: int, total: int) -> str:
    """Rounded down: 100 % is only said of the whole."""
    return f"{100 * done // total if total else 100} %"


def _trouble(rank: RankProgress) -> str:
    """A rank that needs a look, or that has logged an error."""
    where = "it has no log" if rank.log is None else f"log: {rank.log}"
    what = "no error is logged" if rank.error is None else f"last error: {rank.error}"
    seen = f"rank {rank.name} on {rank.host}: {rank.state}, last sign {duration(rank.age_s)} ago"
    return inert(f"{seen}; {what}; {where}")


def _pace_cells(stage: StageProgress) -> str:
    pace = stage.pace
    if pace is None:
        return ""
    if pace.num_ranks == 0:
        return f"{0:>8}{'-':>12}{'stands still':>14}"
    return f"{pace.num_ranks:>8}{pace.answers_a_second:>12.1f}{duration(pace.seconds_left(stage.left)):>14}"
