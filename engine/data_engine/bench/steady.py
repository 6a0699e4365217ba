"""The rate of sampling while the rows are kept full, apart from the beginning and the tail of a unit.

The steady part goes from the first refill of a row that an answer has left to the last refill.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_engine.sampling.native.model_runner import ModelRunner

# Of so many times the questions that the rows hold at once, few prompts are run before the first refill: the rate is
# that of a long run to a fiftieth, and with a quarter of them a tenth above it (tests/bench/test_bench_gpu.py).
LONG = 8


def long_queue(rows: int, k: int) -> int:
    """Questions, of k answers each, whose steady rate is that of a long run."""
    return -(-LONG * rows // k)


@dataclass
class Refills:
    """What a unit's calls of the runner were: when each was made, tokens that it drew, and whether it refilled rows."""

    calls: list[tuple[float, int, bool]] = field(default_factory=list)

    def rate(self) -> float | None:
        """Tokens a second from the first refill to the last; None where there are not two."""
        steps = next((at for at, (_, _, fills) in enumerate(self.calls) if not fills), len(self.calls))
        fills = [at for at, (_, _, fills) in enumerate(self.calls) if fills and at > steps]
        if len(fills) < 2:
            return None
        first, last = fills[0], fills[-1]
        seconds = self.calls[last][0] - self.calls[first][0]
        return sum(tokens for _, tokens, _ in self.calls[first:last]) / seconds if seconds > 0 else None


@contextlib.contextmanager
def refills() -> Iterator[Refills]:
    """Note the calls of the native back end's runner: its `first` fills rows, its `next` is a step.

    On a GPU the time is that of the launch; the host is never more than a step ahead of the device, since it reads the
    tokens of the step before. A row that has drawn its length, and waits for the host to read so, counts for nothing.
    """
    found, first, step = Refills(), ModelRunner.first, ModelRunner.next

    def noted_first(runner, places, *rest, **options):
        found.calls.append((time.perf_counter(), len(places), True))
        return first(runner, places, *rest, **options)

    def noted_next(runner, rows):
        drawing = sum(not row.end() or row.drawn < row.end() for row in rows)
        found.calls.append((time.perf_counter(), drawing, False))
        return step(runner, rows)

    ModelRunner.first, ModelRunner.next = noted_first, noted_next
    try:
        yield found
    finally:
        ModelRunner.first, ModelRunner.next = first, step
