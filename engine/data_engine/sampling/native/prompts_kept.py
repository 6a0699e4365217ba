"""Which prompts have their keys and values in the caches, and whether there is room for another answer beside them."""

from collections import deque
from collections.abc import Sequence as Rows

from data_engine.sampling.native.model_runner import ModelRunner
from data_engine.sampling.native.page_allocator import PageAllocator
from data_engine.sampling.requests import Sequence


class PromptsKept:
    """Of each question in flight: its slot, its prompt's pages where caches are paged, how many answers are in flight.

    A prompt that no answer in flight reads, since those to come wait for room, is kept until its place is needed.
    """

    def __init__(self, runner: ModelRunner, pages: PageAllocator | None) -> None:
        self._runner, self._pages = runner, pages
        self._free_slots = deque(range(runner.caches.num_slots))
        self._slots: dict[int, int] = {}
        self._prompt_pages: dict[int, list[int]] = {}
        self._alive: dict[int, int] = {}

    def can_ever_hold(self, row: Sequence) -> bool:
        """Whether an answer to this question fits the caches with nothing beside it."""
        return self._pages is None or self._pages.can_ever_hold(row.request.prompt.length)

    def make_room(self, row: Sequence, rows: Rows[Sequence]) -> bool:
        """Whether an answer can begin beside `rows`; prompts that no answer reads give up their places for it."""
        while not self._has_room(row, rows):
            if not self.drop_unread(but=row.number):
                return False
        return True

    def _has_room(self, row: Sequence, rows: Rows[Sequence]) -> bool:
        known = row.number in self._slots
        if not (known or self._free_slots):
            return False
        return not self._pages or self._pages.suffice_for_another(rows, 0 if known else row.request.prompt.length)

    def add(self, row: Sequence) -> None:
        """Give an answer its slot; the first one of a question has its prompt prefilled."""
        number, prompt = row.number, row.request.prompt
        if number not in self._slots:
            pages = self._pages.take_for_prompt(prompt.length) if self._pages else []
            self._runner.prefill(prompt, self._free_slots[0], pages)
            self._slots[number], self._alive[number] = self._free_slots.popleft(), 0
            self._prompt_pages[number] = pages
        row.slot = self._slots[number]
        self._alive[number] += 1

    def remove(self, row: Sequence, waiting: Sequence | None) -> None:
        """An answer is no longer in flight; its prompt goes with the last one, unless the next to begin reads it."""
        self._alive[row.number] -= 1
        if not self._alive[row.number] and not (waiting and waiting.number == row.number):
            self._drop(row.number)

    def drop_unread(self, but: int | None = None) -> bool:
        """Drop the prompt of a question of which no answer is in flight; False if there is none, or only `but`."""
        unread = [number for number, alive in self._alive.items() if not alive and number != but]
        if unread:
            self._drop(unread[-1])
        return bool(unread)

    def _drop(self, number: int) -> None:
        slot = self._slots.pop(number)
        self._runner.forget(slot)
        self._free_slots.append(slot)
        pages = self._prompt_pages.pop(number)
        if self._pages:
            self._pages.release_prompt(pages)
        del self._alive[number]
