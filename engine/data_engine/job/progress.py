"""What a person sees of a run: one bar for the whole job on rank 0, log lines with the rank, and a JSON line a unit."""

import contextlib
import logging
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import pyarrow as pa
from tqdm import tqdm

from data_engine.duration import duration
from data_engine.processes.ranks import Ranks
from data_engine.store import logs, units
from data_engine.store.units import UnitResult

REFRESH_S = 1.0
# Without a terminal, a line a minute; the first one early, to show that work goes on.
LINE_S, FIRST_LINE_S = 60.0, 10.0

log = logging.getLogger(__name__)


class _BarAwareHandler(logging.Handler):
    """Writes above the bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def log_to_stderr(ranks: Ranks) -> None:
    """Log lines of this program, with time and rank."""
    handler = _BarAwareHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank {ranks.rank}: %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("data_engine")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


class Progress:
    """Counts the published units of this job's shard, those of all ranks: a bar on a terminal, else a line a minute."""

    def __init__(self, work_dir: Path, stages: list[str], mine: range, total: int, ranks: Ranks) -> None:
        self._work_dir, self._stages, self._mine = work_dir, stages, set(mine)
        self._log = logs.log_path(work_dir, ranks.rank)
        self._total, self._visible = total, ranks.rank == 0
        self._started, self._published_before = time.monotonic(), 0
        self._own_units, self._own_answers = 0, 0
        self._num_open_stages = 1
        self._done = threading.Event()
        self._bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        if self._visible:
            published = [units.published(self._work_dir, stage) & self._mine for stage in self._stages]
            self._published_before = sum(map(len, published))
            self._num_open_stages = max(1, sum(found < self._mine for found in published))
            if sys.stderr.isatty():
                self._bar = tqdm(
                    total=self._total, initial=self._published_before, unit="unit", desc="units", dynamic_ncols=True
                )
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        if self._visible:
            self._thread.join()
            # Counting units may fail too; what the body has raised says more.
            with contextlib.suppress(*([OSError] if error else [])):
                self._refresh()
            if self._bar is not None:
                self._bar.close()

    def unit_done(
        self, stage: str, unit: int, result: UnitResult, *, questions: int, seconds: float, peak_bytes: int
    ) -> None:
        """Note a published unit in this process's log; `peak_bytes` is the most memory this rank has had so far."""
        table = result.table
        # What a stage tells of tokens is a list an answer; a score is none.
        by_token = [table[field.name] for field in table.schema if pa.types.is_list(field.type)]
        # Null for an answer that was given as text.
        tokens = sum(len(answer or ()) for answer in by_token[0].to_pylist()) if by_token else 0
        line = {"time": time.time(), "stage": stage, "unit": unit, "seconds": round(seconds, 3)}
        line |= {"questions": questions, "answers": table.num_rows, "tokens": tokens}
        line["peak_gb"] = round(peak_bytes / 1e9, 3)
        if result.retries:
            line["out_of_memory"] = result.retries
        logs.append(self._log, line)
        self._own_units += 1
        self._own_answers += table.num_rows

    def _published(self) -> int:
        return sum(len(units.published(self._work_dir, stage) & self._mine) for stage in self._stages)

    def _refresh(self) -> None:
        """Show how far the job is."""
        published = self._published()
        # Units that turned out to be damaged may be more than those that were published since.
        done = max(0, published - self._published_before)
        # Units are alike: what this rank's hold on average stands for those of all ranks. An answer is in a unit of
        # each stage, and counts once.
        answers = done / self._num_open_stages * self._own_answers / max(self._own_units, 1)
        elapsed = time.monotonic() - self._started
        rate = f"{answers / elapsed:.1f} answers/s"
        if self._bar is not None:
            self._bar.set_postfix_str(rate, refresh=False)
            self._bar.update(published - self._bar.n)
            return
        left = (self._total - published) * elapsed / done if done else None
        ending = "" if left is None or not left else f", {duration(left)} left"
        log.info("%d of %d units, %s%s", published, self._total, rate, ending)

    def _watch(self) -> None:
        wait_s = FIRST_LINE_S if self._bar is None else REFRESH_S
        while not self._done.wait(wait_s):
            self._refresh()
            wait_s = LINE_S if self._bar is None else REFRESH_S
