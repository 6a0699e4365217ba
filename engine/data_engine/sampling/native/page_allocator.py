"""Pages of prompts and answers: an answer takes another one when its last is full, since few get as long as they may.

How many answers go on at a time follows from how long those before them got, so that pages rarely run out.
"""

from collections import deque
from collections.abc import Iterable

from data_engine.sampling.requests import Sequence

# Tokens of a page.
PAGE = 128
# A prompt with its image, where no question is known yet.
PROMPT_TOKENS = 704
# How many answers that filled each of their pages are taken as seen before the first: a start expects long ones.
SEEN = 8


def pages_of(tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-tokens // PAGE)


def num_pages_of(num_rows: int, num_prompts: int, max_new_tokens: int) -> int:
    """Pages for so many rows, half of what they could fill, and enough for any one; and for so many usual prompts."""
    longest = pages_of(max_new_tokens)
    return max(num_rows, num_rows * longest // 2, longest) + num_prompts * pages_of(PROMPT_TOKENS)


class PageAllocator:
    """Which of the pages 1 to `number` are free, and how many the answers in flight are going to need.

    Page 0 is a dummy: padding rows of a captured batch write to it. Each loop makes an allocator of its own, so that
    no unit depends on those before it.
    """

    def __init__(self, number: int, longest: int) -> None:
        """`longest`: the most pages that an answer fills."""
        self.number, self.longest = number, longest
        self.free = deque(range(1, number + 1))
        self._of_prompts = 0
        # Of answers with so many pages, how many took another one, and how many ended.
        self._went_on = [SEEN] * (longest + 1)
        self._ended = [0] * (longest + 1)

    def take(self, row: Sequence) -> None:
        """One more page for a row, of those that are free."""
        if row.pages:
            self._went_on[len(row.pages)] += 1
        row.pages.append(self.free.popleft())

    def full(self, rows: Iterable[Sequence]) -> list[Sequence]:
        """The rows whose newest token has no place in their pages."""
        return [row for row in rows if row.drawn > len(row.pages) * PAGE]

    def release(self, row: Sequence, at_its_end: bool) -> None:
        """Free a row's pages, at its end or before."""
        self._ended[len(row.pages)] += at_its_end
        self.free.extend(row.pages)
        row.pages = []

    def take_for_prompt(self, tokens: int) -> list[int]:
        """The pages of a prompt, of those that are free."""
        taken = [self.free.popleft() for _ in range(pages_of(tokens))]
        self._of_prompts += len(taken)
        return taken

    def release_prompt(self, pages: Iterable[int]) -> None:
        """Free the pages of a prompt that no row reads."""
        pages = list(pages)
        self.free.extend(pages)
        self._of_prompts -= len(pages)

    def can_ever_hold(self, prompt_tokens: int) -> bool:
        """Whether one answer to such a prompt fits with nothing beside it, however long it gets."""
        return pages_of(prompt_tokens) + self.longest <= self.number

    def suffice_for_another(self, rows: Iterable[Sequence], prompt_tokens: int = 0) -> bool:
        """Whether one more answer beside `rows`, and its prompt, can be expected to find their pages, if all answers
        were at their end.
        """
        expected, prompts = self.expected(), self._of_prompts + pages_of(prompt_tokens)
        answers = expected[1] + sum(expected[len(row.pages)] for row in rows)
        return len(self.free) > pages_of(prompt_tokens) and prompts + answers <= self.number

    def expected(self) -> list[float]:
        """How many pages an answer that has n is expected to have at its end, for each n, 0 for none; from those that
        went on and ended with so many, as Kaplan and Meier estimate survival.
        """
        found = [0.0, *[float(self.longest)] * self.longest]
        for n in reversed(range(1, self.longest)):
            share = self._went_on[n] / (self._went_on[n] + self._ended[n])
            found[n] = share * found[n + 1] + (1 - share) * n
        return found
