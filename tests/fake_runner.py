"""Stands in for the device under the real scheduler: answers have lengths, and nothing is computed."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from data_engine.sampling.native import page_allocator
from data_engine.sampling.native.paged_attention import PagedRows
from data_engine.sampling.native.step_graphs import Captures
from data_engine.sampling.requests import PromptRequest
from data_engine.sampling.requests import Sequence as Answer
from data_engine_kernels.work_list import Division

END, OTHER = 2, 7


@dataclass
class Tokens:
    """What a launch drew; reading it is noted."""

    drawn: list[int]
    log: list[tuple[str, int]] | None
    step: int
    is_cuda = False

    def tolist(self) -> list[int]:
        if self.log is not None:
            self.log.append(("read", self.step))
        return self.drawn


class FakeRunner:
    """A ModelRunner whose answers end where their requests' forced lengths say.

    `log` has ("launch", n) for step n, from 1, ("first", n) for the first draws before step n, and ("read", n) for the
    tokens of either. `used` has of each step how many rows added a token to an answer. `look` sees the rows of each.
    """

    def __init__(self, num_rows: int, num_slots: int, longest: int, noted: bool = True) -> None:
        pages = page_allocator.num_pages(num_rows, longest)
        self.params = SimpleNamespace(max_new_tokens=longest)
        self.model = SimpleNamespace(eos_token_ids=(END,))
        self.placement = PagedRows(10, Captures(None))
        self.caches = SimpleNamespace(
            num_rows=num_rows, num_slots=num_slots, paged=True, page_tokens=page_allocator.PAGE, num_pages=1 + pages,
            pages_RC=np.empty((num_rows, page_allocator.pages_of(longest))),
        )  # fmt: skip
        self.log: list[tuple[str, int]] | None = [] if noted else None
        self.steps, self.used = 0, []
        self.look: Callable[[Sequence[Answer]], None] = lambda rows: None

    def prefill(self, prompt: object, slot: int) -> None:
        pass

    def first(self, places: Sequence[int], keys: object, slots: object, ends: Sequence[int]) -> Tokens:
        assert len(set(places)) == len(places)
        self._note("first", self.steps + 1)
        return Tokens([END if end == 1 else OTHER for end in ends], self.log, self.steps + 1)

    def next(self, rows: Sequence[Answer]) -> Tokens:
        self.steps += 1
        self._note("launch", self.steps)
        self.used.append(sum(row.drawn < row.end() for row in rows))
        self.look(rows)
        return Tokens([END if row.drawn + 1 == row.end() else OTHER for row in rows], self.log, self.steps)

    def move(self, source: int, target: int, length: int) -> None:
        pass

    def give_pages(self, places: object, numbers: object, pages: object) -> None:
        pass

    def _note(self, what: str, step: int) -> None:
        if self.log is not None:
            self.log.append((what, step))


def tasks_needed(slots: Sequence[int], suffixes: Sequence[int], prefixes: Sequence[int], by: Division) -> int:
    """Parts of decode attention that have a token and a query, for one key/value head: counted one by one."""
    found = sum(-(-length // by.page) for length in suffixes)
    for slot, queries in Counter(slot for slot in slots if slot >= 0).items():
        found += -(-queries * by.shared // by.queries) * -(-prefixes[slot] // by.split)
    return found


def asked(lengths: Iterable[Sequence[int]]) -> list[PromptRequest]:
    """A request for each question, its answers of these lengths."""
    return [PromptRequest(None, list(range(len(one))), [int(length) for length in one]) for one in lengths]
