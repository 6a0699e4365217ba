"""The scheduler: which answers are drawn at a time, and what of the caches each holds.

A row of the batch is a sequence, one answer in flight. The prompt of a question is prefilled once; its keys and values
are stored once and read by all its sequences, each of which adds a suffix of its own. A row is refilled as soon as its
sequence ends, and a prefix is freed with its last sequence, so a long answer delays no other.

model_runner.py runs the model, requests.py has the queue. Shapes: N rows of a call.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from data_engine.errors import NO_ROOM, UserError
from data_engine.models.base import VisionLanguageModel
from data_engine.models.memory_errors import naming_out_of_memory
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.cpu_attention import OrderedRows
from data_engine.sampling.native.kv_cache import KVCache, SlotBuffers, num_slots
from data_engine.sampling.native.model_runner import NOT_FINITE, ModelRunner, TokensInFlight
from data_engine.sampling.native.packing import Packing
from data_engine.sampling.native.page_allocator import num_pages_of, pages_of
from data_engine.sampling.native.page_pool import PagePool
from data_engine.sampling.native.paged_attention import PagedRows
from data_engine.sampling.native.prompts_kept import PromptsKept
from data_engine.sampling.native.step_graphs import Captures
from data_engine.sampling.requests import BROKEN, TOO_LARGE, Completion, PromptRequest, Queue, Sequence

log = logging.getLogger(__name__)


class Scheduler:
    """The sequences in flight: number n of `rows` is row n of the caches, and the rows in use are the first ones."""

    def __init__(self, runner: ModelRunner, queue: Queue, lag: int, pauses: bool) -> None:
        """The tokens of a step are read when the step `lag` later was launched, so that the device does not wait for
        the host.

        With `pauses`, `run` yields None when rows are free and the queue is empty.
        """
        self.runner, self.queue, self.pauses = runner, queue, pauses
        self.longest = runner.params.max_new_tokens
        # An answer of one token takes no step, so none would ever be old enough.
        self.lag = lag if self.longest > 1 else 0
        self.num_steps = 0
        self.placement = runner.placement
        self.rows: list[Sequence] = []
        self.pages = runner.page_allocator()
        self.prompts = PromptsKept(runner, self.pages)
        self.in_flight: deque[TokensInFlight] = deque()
        self.too_large: deque[Sequence] = deque()

    def run(self) -> Iterator[Completion | None]:
        while True:
            # Without lag, a row whose answer ends with its first token is free again before the step.
            while self._refill() and not self.lag:
                yield from self._collect()
            while self.too_large:
                row = self.too_large.popleft()
                yield Completion(row.number, row.sample_index, [], TOO_LARGE)
            if self.pauses and len(self.rows) < self.runner.caches.num_rows and not self.queue.first():
                yield None
                if self.queue.first():
                    continue
            if self.rows:
                self._step()
            # What was submitted since the rows were refilled begins with the next refill.
            elif not self.in_flight and not self.queue.first():
                return
            yield from self._collect()

    def unfinished(self) -> list[Sequence]:
        """Answers that were taken from the queue and not given out."""
        rows = [*self.too_large, *self.rows, *(row for drawn in self.in_flight for row in drawn.rows)]
        return [row for row in {id(row): row for row in rows}.values() if not row.ended]

    def _step(self) -> None:
        """Feed each row its newest token and draw the next."""
        if self.pages:
            self._allocate_pages()
        self.num_steps += 1
        self._sent(self.rows, self.runner.next(self.rows), self.num_steps)

    def _sent(self, rows: list[Sequence], drawn: Tensor, step: int) -> None:
        for row in rows:
            row.drawn += 1
        self.in_flight.append(TokensInFlight(list(rows), drawn, step))

    def _collect(self) -> Iterator[Completion]:
        """Read the tokens that are `lag` steps old, or all where no step follows; yield the answers that they end.

        First draws are as old as the step that follows them.
        """
        while self.in_flight and (self.in_flight[0].step <= self.num_steps - self.lag or not self.rows):
            yield from self._read()

    def drain(self) -> Iterator[Completion]:
        """Read all tokens that were drawn, where no step can follow; yield the answers that they end."""
        while self.in_flight:
            yield from self._read()

    def _read(self) -> Iterator[Completion]:
        drawn = self.in_flight.popleft()
        for row, token in zip(drawn.rows, drawn.read(), strict=True):
            if not row.ended and (reason := self._take(row, token)):
                row.ended = True
                yield Completion(row.number, row.sample_index, row.tokens, reason)

    def _take(self, row: Sequence, token: int) -> str | None:
        """Add a token to its answer; why the answer ends with it, if it does."""
        row.broken = token == NOT_FINITE
        if row.broken:
            return BROKEN
        row.tokens.append(token)
        if token in self.runner.model.eos_token_ids:
            return "stop"
        return "length" if len(row.tokens) == self.longest else None

    def _refill(self) -> bool:
        """Admit sequences from the queue into free rows and draw their first tokens; True if there were any."""
        gaps = [place for place, row in enumerate(self.rows) if row.ended or row.drawn == self.longest]
        for place in gaps:
            self._release(self.rows[place])
        if any(self.rows[place].broken for place in gaps):
            # All unused rows, since a sequence may have moved after its logits broke and before the host read it.
            unused = [*gaps, *range(len(self.rows), self.runner.caches.num_rows)]
            self.runner.clean([0, *self.pages.free] if self.pages else unused)
        if gaps:
            self.placement.changed()
        if not self.placement.fills_gaps:
            self._close(gaps)
            gaps = []
        places = deque([*gaps, *range(len(self.rows), self.runner.caches.num_rows)])
        fresh: list[int] = []
        while places and (row := self.queue.first()):
            if not self.prompts.can_ever_hold(row):
                self.too_large.extend(self.queue.drop())
                continue
            if not self.prompts.make_room(row, self.rows):
                break
            self.prompts.add(row)
            self.queue.pop()
            if self.pages:
                self.pages.take(row)
            place = places.popleft()
            self.rows[place : place + 1] = [row]
            fresh.append(place)
        self._close([place for place in gaps if place in places])
        if fresh:
            self.placement.changed()
            self._begin(fresh)
        return bool(fresh)

    def _begin(self, places: list[int]) -> None:
        """Run the prompts that are not in the caches yet, and draw the first tokens of the rows `places`."""
        self.prompts.fill_pass(self.queue, self.rows)
        self.prompts.run()
        rows = [self.rows[place] for place in places]
        keys, slots = [row.request.keys[row.sample_index] for row in rows], [row.slot for row in rows]
        if self.pages:
            self.runner.give_pages(places, [0] * len(rows), [row.pages[0] for row in rows])
        elif self.lag:
            # The one before may have left NaN that the host has not read yet.
            self.runner.clean(places)
        drawn = self.runner.first(places, keys, slots, [row.end() for row in rows])
        self._sent(rows, drawn, self.num_steps + bool(self.lag))

    def _allocate_pages(self) -> None:
        """Give another page to each sequence that has filled its last. When pages run out, prompts that no sequence
        reads are dropped; then the shortest sequence is preempted: its pages are freed, and it restarts later. The
        longest never is, which guarantees progress.
        """
        given = set()
        for row in sorted(self.pages.full(self.rows), key=Sequence.preemption_order, reverse=True):
            while not self.pages.free and not row.ended:
                if not self.prompts.drop_unread():
                    self._preempt(min((one for one in self.rows if not one.ended), key=Sequence.preemption_order))
            if not row.ended:
                self.pages.take(row)
                given.add(row)
        if gone := [place for place, row in enumerate(self.rows) if row.ended]:
            self.placement.changed()
            self._close(gone)
        if places := [place for place, row in enumerate(self.rows) if row in given]:
            pages = [self.rows[place].pages for place in places]
            self.runner.give_pages(places, [len(one) - 1 for one in pages], [one[-1] for one in pages])

    def _preempt(self, row: Sequence) -> None:
        row.ended = True
        self.queue.put_back([row])
        self._release(row, at_its_end=False)

    def _release(self, row: Sequence, at_its_end: bool = True) -> None:
        """Free a row's pages, and what its prompt holds with the last row of its question."""
        if self.pages:
            self.pages.release(row, at_its_end)
        self.prompts.remove(row, self.queue.first())

    def _close(self, gaps: list[int]) -> None:
        """Move sequences from the end of the batch into gaps that no new one fills."""
        for gap in sorted(gaps, reverse=True):
            # With lag whole suffixes, since the answer that left the gap may have left NaN in it: see `_begin`.
            for source in self.placement.sources(self.rows, gap):
                self.runner.move(source, gap, self.longest if self.lag else self.rows[source].drawn)
                self.rows[gap], gap = self.rows[source], source
            self.rows.pop()


class SamplingEngine:
    """A model with caches for `num_rows` answers at a time, which stay from one unit to the next."""

    def __init__(
        self, model: VisionLanguageModel, num_rows: int, num_slots: int, samples_per_prompt: int | None = None,
        num_pages: int = 0
    ) -> None:  # fmt: skip
        """With `samples_per_prompt`, the most answers that a question has, caches are paged, the kernel does the
        attention of a step, and a GPU captures steps in CUDA graphs; without it, steps are plain torch.

        `num_pages`: of the pool; 0: half of what the rows can fill, and those of `num_slots` prompts of usual length.
        """
        self.model, self.num_rows, self.num_slots = model, num_rows, num_slots
        self.samples_per_prompt, self.num_pages = samples_per_prompt, num_pages
        self.is_invariant = samples_per_prompt is not None
        """whether an answer's bits are the same whatever is drawn beside it, with this number of rows"""
        self.retries = 0
        """how often the number of rows was halved for want of memory, in the call of `sample` before"""
        # On a GPU the host reads a step's tokens while the next one runs.
        self.lag = int(model.device.type == "cuda")
        # What cannot be captured with these caches cannot be with the next ones.
        self._captures = Captures.on(model.device)
        # What it measured holds for all caches.
        self._packing: Packing | None = None
        self._runner: ModelRunner | None = None
        self._answered = False

    def sample(self, requests: Iterable[PromptRequest], params: SamplingParams) -> list[Completion]:
        """All answers of all requests, in order of (request, sample_index). Otherwise as `stream`."""
        return sorted(self.stream(requests, params), key=lambda sampled: (sampled.request, sampled.sample_index))

    @torch.inference_mode()
    def stream(
        self, requests: Iterable[PromptRequest], params: SamplingParams, pauses: bool = False
    ) -> Iterator[Completion | None]:
        """Each answer as it is finished; a request is taken when a row is free for it. With `pauses`, also None where
        there is room for more answers than were asked for: `requests` may have more by then.

        The draws depend on the keys alone; the number of rows changes only rounding (about 1e-6 in fp32), and so do the
        answers beside one where the engine is not `is_invariant`. Where memory runs out, the answers that are not
        finished are drawn again, half as many at a time; a question for which it does not suffice with one answer at a
        time, or whose prompt the pool does not hold, is TOO_LARGE. Raises UserError where every question was.
        """
        queue, rows, self.retries, too_large = Queue(requests), self.num_rows, 0, deque()
        while True:
            loop = None
            try:
                with naming_out_of_memory(self.model):
                    loop = Scheduler(self._runner_for(rows, params), queue, self.lag, pauses)
                    for sampled in loop.run():
                        if sampled and sampled.finish_reason == TOO_LARGE:
                            too_large.append(sampled)
                        else:
                            self._answered = self._answered or sampled is not None
                            yield sampled
                        while self._answered and too_large:
                            yield too_large.popleft()
                break
            except torch.OutOfMemoryError:
                self.retries += 1
            # Outside the handler, whose traceback would keep the loop's tensors.
            ended = list(loop.drain()) if loop else []
            self._answered = self._answered or bool(ended)
            yield from ended
            queue.put_back(loop.unfinished() if loop else [])
            if queue.first() is None:
                break
            self._runner = loop = None
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            # What ended in the same moment may be what had no room.
            if rows == 1 and not ended:
                too_large += [Completion(row.number, row.sample_index, [], TOO_LARGE) for row in queue.drop()]
                # What follows may be smaller.
                rows = self.num_rows
            rows = max(1, rows // 2)
            log.warning("out of memory: this unit goes on with %d answers at a time, its finished ones are kept", rows)
        if too_large and not self._answered:
            raise UserError(NO_ROOM)
        yield from too_large

    def _runner_for(self, rows: int, params: SamplingParams) -> ModelRunner:
        """The caches that are there, and the captured step over them, where they serve these values too."""
        if self._runner is None or not self._runner.serves(rows, params):
            # The old caches go first.
            self._runner = None
            sizes = rows, max(1, self.num_slots * rows // self.num_rows)
            if self.samples_per_prompt:
                kept = PagePool(self.model, *sizes, params.max_new_tokens, self._pages_for(rows, params.max_new_tokens))
                placement = PagedRows(self.samples_per_prompt, self._captures)
                if self.model.packs_prompts:
                    self._packing = self._packing or Packing(self.model)
            else:
                kept, placement = SlotBuffers(self.model, *sizes, params.max_new_tokens), OrderedRows()
            self._runner = ModelRunner(self.model, KVCache(self.model, *sizes, kept), params, placement, self._packing)
        self._runner.params = params
        return self._runner

    def _pages_for(self, rows: int, max_new_tokens: int) -> int:
        """The pool's share for so many rows; a quarter, or what the longest sequence takes, however few they are."""
        whole = self.num_pages or num_pages_of(self.num_rows, self.num_slots, max_new_tokens)
        least = min(whole // 4, pages_of(self.model.max_positions) + 1)
        return max(whole * rows // self.num_rows, least)


def sample(
    model: VisionLanguageModel, requests: Iterable[PromptRequest], params: SamplingParams, num_rows: int
) -> list[Completion]:
    """SamplingEngine.sample for one call: all answers, `num_rows` of them at a time."""
    requests = list(requests)
    fewest = min((len(request.keys) for request in requests), default=1)
    return SamplingEngine(model, num_rows, num_slots(num_rows, fewest)).sample(requests, params)
