"""Stands in for the device under the real scheduler: answers have lengths, and nothing is computed."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from data_engine.sampling.native.page_allocator import PageAllocator, num_pages_of, pages_of
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
    log: list[tuple[str, int]]
    step: int
    is_cuda = False

    def tolist(self) -> list[int]:
        self.log.append(("read", self.step))
        return self.drawn


class FakeRunner:
    """A ModelRunner whose answers end where their requests' forced lengths say.

    `log` has ("launch", n) for step n, from 1, ("first", n) for the first draws before step n, and ("read", n) for the
    tokens of either. `used` has of each step how many rows added a token to an answer. `look` sees the rows of each.
    """

    def __init__(self, num_rows: int, num_slots: int, longest: int, num_pages: int = 0) -> None:
        """`num_pages`: 0 for as many as the rows and slots can fill."""
        self.num_pages = num_pages or num_pages_of(num_rows, num_slots, longest)
        self.params = SimpleNamespace(max_new_tokens=longest)
        self.model = SimpleNamespace(eos_token_ids=(END,))
        self.placement = PagedRows(10, Captures(None))
        self.caches = SimpleNamespace(num_rows=num_rows, num_slots=num_slots)
        self.log: list[tuple[str, int]] = []
        self.steps, self.used = 0, []
        self.prompts_a_pass = 1
        self.look: Callable[[Sequence[Answer]], None] = lambda rows: None

    def page_allocator(self) -> PageAllocator:
        return PageAllocator(self.num_pages, pages_of(self.params.max_new_tokens))

    def share_a_pass(self, lengths: Sequence[int]) -> bool:
        return len(lengths) <= self.prompts_a_pass

    def prefill_all(self, waiting: object) -> None:
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

    def forget(self, slot: int) -> None:
        pass

    def give_pages(self, places: object, numbers: object, pages: object) -> None:
        pass

    def _note(self, what: str, step: int) -> None:
        self.log.append((what, step))


def tasks_needed(slots: Sequence[int], suffixes: Sequence[int], prefixes: Sequence[int], by: Division) -> int:
    """Parts of decode attention that have a token and a query, for one key/value head: counted one by one."""
    found = sum(-(-length // by.own) for length in suffixes)
    for slot, queries in Counter(slot for slot in slots if slot >= 0).items():
        found += -(-queries * by.shared // by.queries) * -(-prefixes[slot] // by.split)
    return found


def asked(lengths: Iterable[Sequence[int]], prompt_tokens: int = 640) -> list[PromptRequest]:
    """A request for each question, its answers of these lengths."""
    prompt = SimpleNamespace(length=prompt_tokens)
    return [PromptRequest(prompt, list(range(len(one))), [int(length) for length in one]) for one in lengths]
