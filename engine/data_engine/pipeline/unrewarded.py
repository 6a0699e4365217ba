"""Answers that a rule or a critic gave no number, for a reason that its stage noted: how many, and what is told."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine.errors import kind_of
from data_engine.plural import plural
from data_engine.stages import RunStages, Stage
from data_engine.store import units
from data_engine.store.by_threads import by_threads

REASON = "reason"


def told(work_dir: Path, run_stages: RunStages) -> Iterator[str]:
    """A sentence a stage that notes reasons, and noted some."""
    for stage in run_stages.by_name.values():
        if REASON not in stage.schema(pa.int64()).names:
            continue
        reasons, answers = _counted(work_dir, stage)
        kinds = Counter()
        for reason, count in reasons.items():
            kinds[kind_of(reason)] += count
        if kinds:
            kind, count = kinds.most_common(1)[0]
            first = next(reason for reason in reasons if kind_of(reason) == kind)
            most = f"; most often ({count:,})" if len(kinds) > 1 else ""
            yield f"{stage.name}: no number for {kinds.total():,} of {plural(answers, 'answer')}{most}: {first}"


def _counted(work_dir: Path, stage: Stage) -> tuple[Counter, int]:
    """Answers by reason, those without one left out; and all of them."""
    found, answers = Counter(), 0

    def read(unit: int) -> pa.ChunkedArray:
        path = units.unit_path(work_dir, stage.name, unit)
        return pq.read_table(path, columns=[REASON], partitioning=None)[REASON]

    for column in by_threads(read, sorted(units.published(work_dir, stage.name))):
        answers += len(column)
        found.update({one["values"]: one["counts"] for one in pc.value_counts(column.drop_null()).to_pylist()})
    return found, answers
