"""The plain table of `status`: lines of text for any terminal, pipe or file."""

from data_engine.store.logs import duration
from data_engine.watching.progress import WRITTEN, Progress, StageProgress


def table(progress: Progress) -> str:
    """What `status` prints."""
    lines = [
        f"{progress.work_dir}: {progress.num_questions} questions in {progress.num_units} units of {progress.unit_size}"
    ]
    lines += progress.adapters
    lines.append(f"{'stage':<16}{'units':>15}{'':>6}{'ranks':>8}{'answers/s':>12}{'time left':>14}")
    for stage in progress.stages:
        row = f"{stage.name:<16}{f'{stage.done}/{stage.total}':>15}{percent(stage.done, stage.total):>6}"
        lines.append(f"{row}{_pace_cells(stage) if stage.left else ''}".rstrip())
    lines.append(f"{'pairs':<16}{'written' if progress.pairs == WRITTEN else 'not written':>15}")
    return "\n".join(lines)


def percent(done: int, total: int) -> str:
    """Rounded down: 100 % is only said of the whole."""
    return f"{100 * done // total if total else 100} %"


def _pace_cells(stage: StageProgress) -> str:
    pace = stage.pace
    if pace is None:
        return ""
    if pace.num_ranks == 0:
        return f"{0:>8}{'-':>12}{'stands still':>14}"
    return f"{pace.num_ranks:>8}{pace.answers_a_second:>12.1f}{duration(pace.seconds_left(stage.left)):>14}"
