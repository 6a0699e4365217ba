"""The device's side of the sampling loop: prefill, first draw and decode step, on buffers that are made once.

A step reads everything from those buffers. Its attention, and where rows lie, is a Placement: paged_attention.py where
the kernels are, cpu_attention.py in plain torch.

Shapes: N rows of a call, P prefix tokens, V vocabulary; others as in kv_cache.py.
"""

import functools
from collections import abc
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.device import HostCopy, sent
from data_engine.models.layers.attention import Layout, attending
from data_engine.models.layers.prefix import Prefix, run_prefix
from data_engine.sampling.draw import SamplingParams, next_tokens
from data_engine.sampling.memory import ACTIVATIONS, rows_of_prompts
from data_engine.sampling.native.kv_cache import KVCache, SlotBuffers
from data_engine.sampling.native.packing import MOST_PROMPTS, Packing
from data_engine.sampling.native.page_allocator import PageAllocator, pages_of
from data_engine.sampling.requests import Sequence

# Stands in the place of a token that was drawn from logits of which one is NaN or infinite.
NOT_FINITE = -1


class Placement(Protocol):
    """How rows lie in the caches, and the attention of a step over them; one for the life of a ModelRunner."""

    fills_gaps: bool
    """whether a new answer takes the place of one that ended; else rows close up first"""

    def changed(self) -> None:
        """Rows came, went or moved."""

    def caches_moved(self) -> None:
        """The caches have other addresses now."""

    def sources(self, rows: abc.Sequence[Sequence], gap: int) -> list[int]:
        """The rows that move, each into the gap that the one before it left, to close a gap; the last is at the end."""

    def step(self, runner: "ModelRunner", rows: abc.Sequence[Sequence]) -> Tensor:
        """Feed each row its newest token and draw the next [N]."""


class ToRun(NamedTuple):
    """A prompt, and where what it leaves goes."""

    prompt: Prompt
    slot: int
    pages: abc.Sequence[int]


class ModelRunner:
    """What the scheduler asks of the device; one for a set of caches and sampling values."""

    def __init__(
        self,
        model: VisionLanguageModel,
        caches: KVCache,
        params: SamplingParams,
        placement: Placement,
        packing: Packing | None = None,
    ) -> None:
        """`packing`: which prompts run in one pass; None: each runs alone. Only with paged caches."""
        self.model, self.caches, self.params, self.placement = model, caches, params, placement
        self._packing = packing
        device = model.device
        vocabulary = len(model.head.weight) if params.repetition_penalty != 1 else 0
        self.seen_RV = torch.zeros(caches.num_rows, vocabulary, dtype=torch.bool, device=device)
        self.every_row = torch.arange(caches.num_rows, device=device)
        self.eos = torch.tensor(model.eos_token_ids, device=device)
        self.banned = torch.tensor(model.banned_token_ids, dtype=torch.long, device=device)
        self.prefix_lengths = [0] * caches.num_slots

    def serves(self, num_rows: int, params: SamplingParams) -> bool:
        """Whether its buffers and steps are those for so many rows and these values; they may have room for more."""
        if self.caches.num_rows != num_rows or isinstance(self.caches.kept, SlotBuffers):
            return self.caches.num_rows == num_rows and params == self.params
        bounded = replace(params, max_new_tokens=self.params.max_new_tokens)
        return self.params == bounded and params.max_new_tokens <= self.caches.kept.suffix_tokens

    def prefill(self, prompt: Prompt, slot: int, pages: abc.Sequence[int]) -> None:
        """Run a prompt: its keys and values into the slot, in these pages if any; the logits of every first token."""
        self._keep(run_prefix(self.model, prompt), slot, pages)

    @property
    def prompts_a_pass(self) -> int:
        """The most prompts that may run in one."""
        return MOST_PROMPTS if self._packing else 1

    def share_a_pass(self, lengths: abc.Sequence[int]) -> bool:
        """Whether prompts of these lengths may run in one."""
        return self._packing is not None and self._packing.may_go(lengths, self._room)

    def prefill_all(self, waiting: abc.Sequence[ToRun]) -> None:
        """`prefill` of each, in order; several in a pass where that changes no bit of any."""
        while waiting:
            waiting = waiting[self._prefill_first(waiting) :]

    def _prefill_first(self, waiting: abc.Sequence[ToRun]) -> int:
        """Run the prompts of one pass, the first ones; how many. What they leave is gone before the next pass runs."""
        prefixes = self._packing.run([one.prompt for one in waiting], self._room) if self._packing else []
        for one, prefix in zip(waiting, prefixes, strict=False):
            self._keep(prefix, one.slot, one.pages)
        if not prefixes:
            self.prefill(*waiting[0])
        return max(1, len(prefixes))

    @functools.cached_property
    def _room(self) -> int:
        """Rows of a pass of prompts that memory has room for beside these caches."""
        pool, width, itemsize = self.caches.kept, self.model.head.weight.shape[1], self.model.dtype.itemsize
        caches = pool.token_bytes * pool.num_pages * pool.page_tokens
        return rows_of_prompts(caches, pool.token_bytes, ACTIVATIONS * width * itemsize, self.model.device.type)

    def _keep(self, prefix: Prefix, slot: int, pages: abc.Sequence[int]) -> None:
        if self.caches.store(slot, prefix, pages):
            self.placement.caches_moved()
        self.caches.first_logits_QV[slot] = self.model.head.logits(prefix.end.hidden_D[None])[0]
        self.prefix_lengths[slot] = prefix.length

    def forget(self, slot: int) -> None:
        """No row reads the prompt of this slot any more."""
        self.caches.forget(slot)

    def first(
        self, places: abc.Sequence[int], keys: abc.Sequence[int], slots: abc.Sequence[int], ends: abc.Sequence[int]
    ) -> Tensor:
        """Start answers in the rows `places` and draw their first tokens [N], which come from the prefix alone."""
        none = [0] * len(places)
        which, state = (self._sent(numbers) for numbers in (places, [none, keys, none, slots, ends]))
        self.caches.state_5R[:, which] = state
        self.caches.start(places, slots)
        self.seen_RV.index_fill_(0, which, False)
        return self._draw(self.caches.first_logits_QV[state[3]], which)

    def page_allocator(self) -> PageAllocator | None:
        """All pages of the pool, free; None where caches are not paged."""
        kept = self.caches.kept
        if isinstance(kept, SlotBuffers):
            return None
        return PageAllocator(kept.num_pages - 1, pages_of(self.params.max_new_tokens))

    def next(self, rows: abc.Sequence[Sequence]) -> Tensor:
        """Feed each row its newest token and draw the next [N]."""
        return self.placement.step(self, rows)

    def move(self, source: int, target: int, length: int) -> None:
        self.caches.move(source, target, length)
        self.seen_RV[target] = self.seen_RV[source]

    def give_pages(self, places: abc.Sequence[int], numbers: abc.Sequence[int], pages: abc.Sequence[int]) -> None:
        """For each of the rows `places`: the page of that number in its order is that page of the caches."""
        where = self._sent([places, numbers, pages])
        self.caches.kept.pages_RC[where[0], where[1]] = where[2]

    def clean(self, pages: abc.Sequence[int]) -> None:
        """Overwrite unused suffixes with zeros: 0 x NaN is NaN, and masked keys and values are multiplied by 0."""
        which = self._sent(pages)
        for cache in self.caches.kept.suffixes():
            cache.index_fill_(0, which, 0)

    def _sent(self, numbers: abc.Sequence) -> Tensor:
        return sent(torch.tensor(numbers), self.model.device)

    def advance(self, which: Tensor, layout: Layout) -> Tensor:
        """Run a step of the first rows, `which`, with this attention, and draw their next tokens."""
        caches = self.caches
        positions = caches.next_positions_Q[caches.slots_R[which]] + caches.lengths_R[which] - 1
        cache = caches.answer_cache(len(which), self.model.cache_layers)
        with attending(layout, self.model.attention_layers):
            hidden = self.model.run_answers(caches.tokens_R[which][:, None], positions[:, None], cache)
        return self._draw(self.model.head.logits(hidden[:, 0]), which)

    def _draw(self, logits_NV: Tensor, which: Tensor) -> Tensor:
        """The next token of the rows `which`, noted in their state; NOT_FINITE for those without sound logits."""
        caches, places = self.caches, self.caches.lengths_R[which]
        # One that is NaN or infinite makes the sum so; read with the tokens, it costs the host no wait of its own.
        sound = logits_NV.sum(-1).isfinite()
        if len(self.banned):
            logits_NV.index_fill_(1, self.banned, -torch.inf)
        if self.params.forced_lengths:
            logits_NV.index_fill_(1, self.eos, -torch.inf)
        seen = self.seen_RV[which] if self.seen_RV.shape[1] else None
        drawn = next_tokens(logits_NV, caches.keys_R[which], places, self.params, seen)
        if self.params.forced_lengths:
            drawn = torch.where(places == caches.ends_R[which] - 1, self.eos[0], drawn)
        if seen is not None:
            self.seen_RV[which, drawn] = torch.ones_like(which, dtype=torch.bool)
        caches.tokens_R[which] = drawn
        caches.lengths_R[which] += 1
        return torch.where(sound, drawn, NOT_FINITE)


class TokensInFlight:
    """Tokens that a step draws, or that answers begin with, by the number of the step that they were launched with."""

    def __init__(self, rows: abc.Sequence[Sequence], tokens_N: Tensor, step: int) -> None:
        self.rows, self.step, self._tokens = rows, step, HostCopy(tokens_N)

    def read(self) -> list[int]:
        """Waits for these alone, not for what was launched after them."""
        return self._tokens.read().tolist()
