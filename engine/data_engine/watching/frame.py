"""Progress laid out for a screen of so many columns and lines: what matters most is kept where there is little room."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from data_engine.duration import duration
from data_engine.plural import plural
from data_engine.store.units import compressed
from data_engine.watching.inert import inert
from data_engine.watching.progress import (
    ALIVE,
    ENDED,
    READY,
    TROUBLED,
    WRITTEN,
    Progress,
    StageProgress,
    Warned,
)
from data_engine.watching.table import percent

Line = list[Segment]
GAP, LEAST_BAR, MOST_BAR = 2, 8, 30
# From this width on, seconds are told of a time of day.
ROOM_FOR_SECONDS = 56
NUM_WARNINGS, LINES_OF_NEWEST = 8, 4
# The kinds of lines; where there are too few, those of the first kinds are kept.
KINDS = (
    "summary", "note", "open stage", "stage", "ranks", "newest", "trouble", "heading", "title", "hint", "ranks heading",
    "more of newest", "warning", "gap", "rank",
)  # fmt: skip
STYLES = dict.fromkeys(TROUBLED, "bold red") | dict.fromkeys(ALIVE, "green") | dict.fromkeys(ENDED, "default")
STYLES |= {"stalled": "bold yellow", "silent": "yellow", "waiting": "default", "starting": "default"}


@dataclass(frozen=True)
class Paper:
    """What is written on: its columns, and the encoding of what it can show."""

    width: int
    encoding: str

    @property
    def is_ascii(self) -> bool:
        return not self.encoding.startswith("utf")

    def cut(self, text: str, width: int | None = None) -> Text:
        """Text of others, on one line; its end is left out where it is too long."""
        found = Text(inert(text, self.encoding))
        width = self.width if width is None else width
        found.truncate(width, overflow="crop" if self.is_ascii else "ellipsis")
        return found


def frame(
    progress: Progress, console: Console, paper: Paper, height: int, hint: str = "", note: str = ""
) -> list[Line]:
    """At most `height` lines, each `paper.width` columns wide; `note` is said behind the summary."""
    options = console.options.update(width=paper.width, height=None, no_wrap=False)
    options.encoding = paper.encoding
    lines = [
        (kinds[min(at, len(kinds) - 1)], line)
        for kinds, renderable in _sections(progress, paper, hint, note)
        for at, line in enumerate(console.render_lines(renderable, options))
    ]
    # Kept: the first kinds, and of each the first lines.
    kept = sorted(sorted(range(len(lines)), key=lambda at: (KINDS.index(lines[at][0]), at))[:height])
    # No gap at the top or the bottom, nor two of them.
    shown = [lines[at] for at in kept]
    return [
        line for at, (kind, line) in enumerate(shown)
        if kind != "gap" or (0 < at < len(shown) - 1 and shown[at + 1][0] != "gap")
    ]  # fmt: skip


def _sections(progress: Progress, paper: Paper, hint: str, note: str) -> Iterator[tuple[list[str], RenderableType]]:
    """What is shown, top to bottom: the kinds of its lines, and what rich makes lines of."""
    yield ["title"], _title(progress, paper)
    yield ["summary"], _summary(progress, paper)
    if note:
        yield ["note"], paper.cut(note)
    yield ["gap"], Text()
    kinds = ["open stage" if stage.left else "stage" for stage in progress.stages]
    yield ["heading", *kinds], _stages(progress, paper)
    yield ["stage"], Text(f"pairs: {'written' if progress.pairs == WRITTEN else 'not written'}")
    if progress.ranks:
        yield ["gap"], Text()
        yield ["ranks"], _counted(progress)
        kinds = ["trouble" if rank.state in TROUBLED else "rank" for rank in progress.ranks]
        yield ["ranks heading" if "trouble" in kinds else "rank", *kinds], _ranks(progress, paper)
    if progress.warnings:
        yield ["gap"], Text()
        yield ["warning"], Text(f"warnings: {progress.num_warnings}, newest first", "bold")
        newest, *others = reversed(progress.warnings[-NUM_WARNINGS:])
        told = Text(inert(_told(newest, paper), paper.encoding), overflow="fold")
        told.stylize("bold red" if newest.is_error else "yellow")
        lines = told.wrap(Console(width=paper.width), paper.width)[:LINES_OF_NEWEST]
        yield ["newest", "more of newest"], Text("\n").join(lines)
        for one in others:
            yield ["warning"], paper.cut(_told(one, paper))
    if hint:
        yield ["gap"], Text()
        yield ["hint"], Text(inert(hint, paper.encoding), "dim", no_wrap=True, overflow="crop")


def _title(progress: Progress, paper: Paper) -> Text:
    """The work_dir, of which the end says most, and the time of the look."""
    clock = time.strftime("%H:%M:%S", time.localtime(progress.time))
    name = Text(inert(progress.work_dir, paper.encoding), "bold")
    room = paper.width - len(clock) - 2
    if name.cell_len > room:
        plain = name.plain
        while plain and Text(plain).cell_len > room - 3:
            plain = plain[1:]
        name = Text(f"...{plain}", "bold")
    name.pad_right(max(1, paper.width - name.cell_len - len(clock)))
    return name.append(clock)


def _summary(progress: Progress, paper: Paper) -> Text:
    told = next((words for words in _in_words(progress) if len(words) <= paper.width), _in_words(progress)[-1])
    found = Text(told, "bold green" if progress.is_done else "bold", no_wrap=True, overflow="crop")
    told = f"   {plural(progress.num_questions, 'question')} in units of {progress.unit_size}"
    if found.cell_len + len(told) <= paper.width:
        found.append(told, "not bold")
    return found


def _in_words(progress: Progress) -> tuple[str, ...]:
    """How far the run is, and the time left; then the same in fewer letters."""
    if progress.is_done:
        return "finished: the pairs are written", "finished"
    if progress.pairs == READY:
        pairing = any(rank.state == "pairing" for rank in progress.ranks)
        told = "pairs are being made" if pairing else "pairs not written"
        return f"all units done; {told}", told
    share = f"{percent(progress.units_done, progress.units_total)} done"
    left, at_least = progress.seconds_left, progress.seconds_left_at_least
    if left is not None:
        return f"{share}, {duration(left)} left", share
    if at_least is not None:
        return f"{share}, more than {duration(at_least)} left", f"{share}, > {duration(at_least)}", share
    return f"{share}, {'time left unknown' if progress.num_working else 'nobody at work'}", share


def _stages(progress: Progress, paper: Paper) -> Table:
    """A heading, and a line for each stage; a bar where there is room for one."""
    rows = [_cells(stage, paper) for stage in progress.stages]
    columns, room = _fitting(
        rows, ["stage", "units", "done", "answers/s", "ranks", "time left"],
        ("answers/s", "ranks", "units", "time left"), paper,
    )  # fmt: skip
    if room < 0:
        # A name may be cut; a number that is cut is another one.
        longest = max(row["stage"].cell_len for row in rows)
        for row in rows:
            row["stage"].truncate(max(1, longest + room))
    bar = min(MOST_BAR, room - GAP) if room - GAP >= LEAST_BAR else 0
    if bar:
        columns.insert(2, "")
        rows = [{**row, "": _bar(stage, bar, paper)} for row, stage in zip(rows, progress.stages, strict=True)]
    return _grid(rows, columns, left=("stage", ""))


def _fitting(
    rows: list[dict[str, Text]], columns: list[str], dropped: tuple[str, ...], paper: Paper
) -> tuple[list[str], int]:
    """The columns that fit, without as many of those to be dropped as need be, and the room that they leave."""
    widths = {name: max(len(name), *(row[name].cell_len if name in row else 0 for row in rows)) for name in columns}
    left = list(dropped)
    while (room := paper.width - sum(widths[name] + GAP for name in columns) + GAP) < 0 and left:
        columns = [name for name in columns if name != left[0]]
        left.pop(0)
    return columns, room


def _grid(rows: list[dict[str, Text]], columns: list[str], left: tuple[str, ...]) -> Table:
    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    for name in columns:
        table.add_column(justify="left" if name in left else "right", no_wrap=True, overflow="crop")
    table.add_row(*(Text(name, "bold") for name in columns))
    for row in rows:
        table.add_row(*(row.get(name, Text()) for name in columns))
    return table


def _cells(stage: StageProgress, paper: Paper) -> dict[str, Text]:
    cells = {"stage": paper.cut(stage.name, 16), "units": Text(f"{stage.done}/{stage.total}")}
    cells["done"] = Text(percent(stage.done, stage.total))
    if not stage.left:
        return cells
    cells["ranks"], pace = Text(str(stage.num_ranks)), stage.pace
    if pace is None:
        return cells
    if not pace.num_ranks:
        # A stage waits its turn as long as ranks are at work on another.
        return cells | {"time left": Text("stands still", "yellow")}
    cells["answers/s"] = Text(f"{pace.answers_a_second:,.1f}")
    return cells | {"time left": Text(duration(pace.seconds_left(stage.left)))}


def _bar(stage: StageProgress, width: int, paper: Paper) -> Text:
    """Readable without colours: what is done is drawn by another letter than what is left."""
    full, empty = ("#", "-") if paper.is_ascii else ("━", "╌")
    done = width * stage.done // stage.total if stage.total else width
    return Text.assemble((full * done, "green" if not stage.left else "cyan"), (empty * (width - done), "dim"))


def _counted(progress: Progress) -> Text:
    """How many ranks are in which state."""
    counts = Counter(rank.state for rank in progress.ranks)
    found = Text("ranks: ", "bold", no_wrap=True, overflow="crop")
    parts = [Text(f"{counts[state]} {state}", STYLES[state]) for state in (*TROUBLED, *ALIVE, *ENDED) if counts[state]]
    return found + Text(", ").join(parts)


def _ranks(progress: Progress, paper: Paper) -> Table:
    rows = [
        {
            "rank": Text(rank.name), "state": Text(rank.state, STYLES[rank.state]),
            "stage": paper.cut(rank.stage or "", 16), "unit": Text(compressed(list(rank.units))),
            "last sign": Text(f"{duration(rank.age_s)} ago"), "host": paper.cut(rank.host, 30),
        }
        for rank in progress.ranks
    ]  # fmt: skip
    columns, _ = _fitting(
        rows, ["rank", "state", "stage", "unit", "last sign", "host"], ("stage", "unit", "host", "last sign"), paper
    )
    return _grid(rows, columns, left=("state", "stage", "host"))


def _told(one: Warned, paper: Paper) -> str:
    clock = time.strftime("%H:%M" if paper.width < ROOM_FOR_SECONDS else "%H:%M:%S", time.localtime(one.time))
    who = f"rank {one.rank}" if one.rank >= 0 else "a rank"
    return f"{clock} {who}: {'' if one.level == 'warning' else f'{one.level}: '}{one.message}"
