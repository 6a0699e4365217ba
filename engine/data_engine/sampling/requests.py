"""Requests that were submitted, answers in the making, and those that wait for a row of the sampling loop."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from data_engine.models.base import Prompt

# The model gave logits of which one is NaN or infinite: nothing was drawn from them.
BROKEN = "broken"
# Memory ran out though nothing else was in flight: nothing was drawn.
TOO_LARGE = "too large"


@dataclass(frozen=True)
class PromptRequest:
    """One question: its prompt, and one random-number key an answer."""

    prompt: Prompt
    keys: list[int]
    lengths: list[int] | None = None
    """of each answer, EOS included, where SamplingParams.forced_lengths is set"""


class Submitted:
    """The requests that were submitted to a back end, in order; asked again after the last, it has what came since."""

    def __init__(self) -> None:
        self._waiting: deque[Iterator[PromptRequest]] = deque()
        self.num_taken = 0

    def __bool__(self) -> bool:
        """Whether some are left, as far as is known: none of the last ones may be."""
        return bool(self._waiting)

    def add(self, requests: Iterable[PromptRequest]) -> None:
        self._waiting.append(iter(requests))

    def clear(self) -> None:
        self._waiting.clear()

    def __iter__(self) -> Iterator[PromptRequest]:
        return self

    def __next__(self) -> PromptRequest:
        while self._waiting:
            request = next(self._waiting[0], None)
            if request is not None:
                self.num_taken += 1
                return request
            self._waiting.popleft()
        raise StopIteration


@dataclass(frozen=True)
class Completion:
    """One answer: where it belongs, its ids (EOS included), and why it ended: "stop", "length", BROKEN or TOO_LARGE."""

    request: int
    sample_index: int
    token_ids: list[int]
    finish_reason: str
    logps: list[float] | None = None
    """of its tokens, where a back end of other weights tells them: before temperature and filters, nats"""


@dataclass(eq=False)
class Sequence:
    """An answer in the making; `drawn` counts the tokens asked of the device, `tokens` are those that came back."""

    number: int
    request: PromptRequest
    sample_index: int
    slot: int = -1
    drawn: int = 0
    ended: bool = False
    broken: bool = False
    pages: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def end(self) -> int:
        """Its forced length, or 0."""
        return self.request.lengths[self.sample_index] if self.request.lengths else 0

    def preemption_order(self) -> tuple[int, int, int]:
        """The more is drawn, the more would be lost with it."""
        return self.drawn, -self.number, -self.sample_index


class Queue:
    """The answers still to draw, in order; a request is taken from its iterable when an answer of it is looked at."""

    def __init__(self, requests: Iterable[PromptRequest]) -> None:
        """`requests` may have more after it had none: it is asked again whenever no answer waits."""
        self._requests = enumerate(requests)
        self._rows: deque[Sequence] = deque()

    def first(self) -> Sequence | None:
        while not self._rows and self._take():
            pass
        return self._rows[0] if self._rows else None

    def of_each_question(self, most: int) -> list[Sequence]:
        """The first answer that waits of each of the next questions, in order, up to `most`."""
        while len({row.number for row in self._rows}) < most and self._take():
            pass
        firsts: dict[int, Sequence] = {}
        for row in self._rows:
            firsts.setdefault(row.number, row)
        return list(firsts.values())[:most]

    def _take(self) -> bool:
        """Take another request; False where there is none."""
        number, request = next(self._requests, (0, None))
        if request is not None:
            self._rows.extend(Sequence(number, request, index) for index in range(len(request.keys)))
        return request is not None

    def pop(self) -> None:
        self._rows.popleft()

    def drop(self) -> list[Sequence]:
        """Take out what is left of the question that comes first; answers that were put back may stand between."""
        number, rows = self.first().number, self._rows
        self._rows = deque(row for row in rows if row.number != number)
        return [row for row in rows if row.number == number]

    def put_back(self, rows: Iterable[Sequence]) -> None:
        """Answers that were begun and lost: they come first again, from their first token."""
        lost = sorted(rows, key=lambda row: (row.number, row.sample_index), reverse=True)
        self._rows.extendleft(Sequence(row.number, row.request, row.sample_index) for row in lost)
