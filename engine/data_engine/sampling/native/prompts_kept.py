"""Which prompts have their keys and values in the caches, and whether there is room for another answer beside them."""

from collections import deque
from collections.abc import Sequence as Rows

from data_engine.sampling.native.model_runner import ModelRunner, ToRun
from data_engine.sampling.native.page_allocator import PageAllocator
from data_engine.sampling.requests import Queue, Sequence


class PromptsKept:
    """Of each question in flight: its slot, its prompt's pages where caches are paged, how many answers are in flight.

    A prompt that no answer in flight reads, since those to come wait for a row or for room, is kept until its place is
    needed.
    """

    def __init__(self, runner: ModelRunner, pages: PageAllocator | None) -> None:
        self._runner, self._pages = runner, pages
        self._free_slots = deque(range(runner.caches.num_slots))
        self._slots: dict[int, int] = {}
        self._prompt_pages: dict[int, list[int]] = {}
        self._alive: dict[int, int] = {}
        self._to_run: list[ToRun] = []

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
        """Give an answer its slot; the first one of a question has its prompt prefilled, by the next call of `run`."""
        if row.number not in self._slots:
            self._place(row)
            # As many as go in one pass; the device need not wait for the host to make the prompts behind them.
            if len(self._to_run) >= self._runner.prompts_a_pass:
                self.run()
        row.slot = self._slots[row.number]
        self._alive[row.number] += 1

    def _place(self, row: Sequence) -> None:
        number, prompt = row.number, row.request.prompt
        pages = self._pages.take_for_prompt(prompt.length) if self._pages else []
        self._slots[number], self._alive[number] = self._free_slots.popleft(), 0
        self._prompt_pages[number] = pages
        self._to_run.append(ToRun(prompt, self._slots[number], pages))

    def fill_pass(self, waiting: Queue, rows: Rows[Sequence]) -> None:
        """Have prompts of questions that wait run in the pass that others run in anyway, as many as it may have.

        Called where no other answer can begin: they take pages that the answers in flight are not expected to need. If
        these come to need one, such a prompt is dropped, as any that no answer reads, and runs again in its turn.
        """
        # With one answer at a time, the question whose prompt has no room is left out: it must be the one that begins.
        if not self._to_run or self._runner.prompts_a_pass == 1 or self._runner.caches.num_rows == 1:
            return
        lengths = [one.prompt.length for one in self._to_run]
        # Of the first question, other answers may be in flight.
        for row in waiting.of_each_question(self._runner.prompts_a_pass):
            if row.number in self._slots:
                continue
            lengths.append(row.request.prompt.length)
            has_place = self._free_slots and self._pages.suffice_for_another(rows, lengths[-1])
            if not (has_place and self.can_ever_hold(row) and self._runner.share_a_pass(lengths)):
                return
            self._place(row)

    def run(self) -> None:
        """Prefill the prompts that were added and have not been run: none of them is dropped before, since an answer in
        flight reads it.
        """
        if self._to_run:
            to_run, self._to_run = self._to_run, []
            self._runner.prefill_all(to_run)

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
