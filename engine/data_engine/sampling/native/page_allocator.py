"""Pages of suffixes: a row takes another one when its last is full, since few answers get as long as they may.

How many answers go on at a time follows from how long those before them got, so that pages rarely run out.
"""

from collections import deque
from collections.abc import Iterable

from data_engine.sampling.requests import Sequence

# Tokens of a page.
PAGE = 128
# How many answers that filled each of their pages are taken as seen before the first: a start expects long ones.
SEEN = 8


def pages_of(tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-tokens // PAGE)


def num_pages(num_rows: int, suffix_tokens: int) -> int:
    """Pages for so many rows: half of what they could fill, and enough for any one."""
    longest = pages_of(suffix_tokens)
    return max(num_rows, num_rows * longest // 2, longest)


class PageAllocator:
    """Which of the pages 1 to `number` are free, and how many the answers in flight are going to need.

    Page 0 is a dummy: padding rows of a captured batch write to it. Each loop makes an allocator of its own, so that
    no unit depends on those before it.
    """

    def __init__(self, number: int, longest: int) -> None:
        """`longest`: the most pages that an answer fills."""
        self.number, self.longest = number, longest
        self.free = deque(range(1, number + 1))
        # Of answers with so many pages, how many took another one, and how many ended.
        self._went_on = [SEEN] * (longest + 1)
        self._ended = [0] * (longest + 1)

    def take(self, row: Sequence) -> None:
        """One more page for a row, of those that are free."""
        if row.pages:
            self._went_on[len(row.pages)] += 1
        row.pages.append(self.free.popleft())

    def release(self, row: Sequence, at_its_end: bool) -> None:
        """Free a row's pages, at its end or before."""
        self._ended[len(row.pages)] += at_its_end
        self.free.extend(row.pages)
        row.pages = []

    def suffice_for_another(self, rows: Iterable[Sequence]) -> bool:
        """Whether one more answer beside `rows` can be expected to find its pages, if all of them were at their end."""
        expected = self.expected()
        return bool(self.free) and expected[1] + sum(expected[len(row.pages)] for row in rows) <= self.number

    def expected(self) -> list[float]:
        """How many pages an answer that has n is expected to have at its end, for each n, 0 for none; from those that
        went on and ended with so many, as Kaplan and Meier estimate survival.
        """
        found = [0.0, *[float(self.longest)] * self.longest]
        for n in reversed(range(1, self.longest)):
            share = self._went_on[n] / (self._went_on[n] + self._ended[n])
            found[n] = share * found[n + 1] + (1 - share) * n
        return found
