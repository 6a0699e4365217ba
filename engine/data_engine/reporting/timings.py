"""Where the time of a run went and what was left out, over all its ranks and starts: a work_dir in, two tables out.

Time comes from logs/rank-*.jsonl, rows from the units; no other part of the run is needed.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_engine import stages
from data_engine.duration import duration
from data_engine.reporting import quarantine
from data_engine.reporting.quarantine import Kind
from data_engine.store import logs

NUM_REASONS, IDX_LENGTH = 12, 40
# Columns of the times, and the fields of StageTime that they count.
TROUBLES = {"out of memory": "out_of_memory", "done again": "computed_again"}


@dataclass
class StageTime:
    """What one stage took, summed over ranks."""

    units: int = 0
    answers: int = 0
    seconds: float = 0.0
    """of computing, without loading the model"""
    out_of_memory: int = 0
    """how often a unit was retried in halves"""
    peak_gb: float = 0.0
    """the most memory of any rank so far"""
    computed_again: int = 0
    """units that are in the logs more than once: two ranks computed them, or a damaged one was repeated"""


@dataclass(frozen=True)
class Summary:
    """Time by stage, other time by event, and quarantined rows by reason."""

    stages: dict[str, StageTime]
    events: dict[str, tuple[int, float]]
    """event -> how often, and seconds in all"""
    reasons: dict[tuple[str, str], Kind]
    """(stage, reason) -> rows"""

    @classmethod
    def read(cls, work_dir: Path) -> "Summary":
        """The summary of what `work_dir` holds by now."""
        return cls(_stages(work_dir), _events(work_dir), quarantine.kinds(work_dir))

    def times(self) -> list[tuple[str, ...]]:
        """A heading and a row for each stage and event, as text; "" where a column does not apply.

        What never happened has no column: the table fits into 80 columns of a terminal.
        """
        happened = [name for name in TROUBLES if any(getattr(time, TROUBLES[name]) for time in self.stages.values())]
        heading = ("", "done", "time, all ranks", "answers", "answers/s a rank", "peak GB", *happened)
        rows = [heading]
        for stage, time in self.stages.items():
            pace = f"{time.answers / time.seconds:,.1f}" if time.seconds else ""
            peak = f"{time.peak_gb:.1f}" if time.peak_gb else ""
            troubles = (f"{getattr(time, TROUBLES[name]):,}" for name in happened)
            done = (stage, f"{time.units:,}", duration(time.seconds))
            rows.append((*done, f"{time.answers:,}", pace, peak, *troubles))
        for event, (count, seconds) in self.events.items():
            rows.append((event, f"{count:,}", duration(seconds), *[""] * (len(heading) - 3)))
        return rows

    def left_out(self) -> list[tuple[str, ...]]:
        """A heading and a row for each of the most frequent reasons; nothing where no row was quarantined."""
        if not self.reasons:
            return []
        most = sorted(self.reasons.items(), key=lambda one: -one[1].rows)
        rows = [("quarantined in", "rows", "first idx", "reason")]
        for (stage, why), kind in most[:NUM_REASONS]:
            rows.append((stage, f"{kind.rows:,}", " ".join(str(kind.idxs[0]).split())[:IDX_LENGTH], why))
        others = sum(kind.rows for _, kind in most[NUM_REASONS:])
        return [*rows, ("", f"{others:,}", "", "other reasons")] if others else rows

    def table(self) -> str:
        """The text that a run prints at its end."""
        tables = aligned(self.times()), aligned(self.left_out(), left=("reason",))
        return "\n\n".join("\n".join(lines) for lines in tables if lines)


def aligned(rows: Sequence[tuple[str, ...]], left: Collection[str] = ()) -> list[str]:
    """Columns side by side under the first row: the first one and those of these names to the left, others right."""
    columns = list(zip(*rows, strict=True))
    sides = ["<" if at == 0 or column[0] in left else ">" for at, column in enumerate(columns)]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]


def _stages(work_dir: Path) -> dict[str, StageTime]:
    """By name; stages without a logged unit are left out."""
    times, seen = {stage: StageTime() for stage in stages.known()}, defaultdict(set)
    for line in logs.unit_lines(work_dir):
        time = times.get(line["stage"])
        if time is None:
            continue
        if line.get("unit") in seen[line["stage"]]:
            time.computed_again += 1
        else:
            seen[line["stage"]].add(line.get("unit"))
            time.units += 1
        time.answers += int(line["answers"])
        time.seconds += line["seconds"]
        time.out_of_memory += int(line.get("out_of_memory", 0))
        time.peak_gb = max(time.peak_gb, float(line.get("peak_gb", 0)))
    return {stage: time for stage, time in times.items() if time.units}


def _events(work_dir: Path) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    for event, seconds in logs.events(work_dir):
        count, total = found.get(event, (0, 0.0))
        found[event] = (count + 1, total + seconds)
    return dict(sorted(found.items()))
