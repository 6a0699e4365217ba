"""The device's side of the sampling loop: prefill, first draw and decode step, on buffers that are made once.

A step reads everything from those buffers. Where one operation does the attention of all rows, it needs no figure of
the host either: on a GPU it is then captured in CUDA graphs, one for each rounded-up number of rows, and replayed.

Shapes: N rows of a call, P prefix tokens, V vocabulary; others as in caches.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data_engine.models.attention import Layout, Prefill, forward, positions
from data_engine.models.base import VisionLanguageModel, sent
from data_engine.sampling.draw import SamplingParams, next_tokens
from data_engine.sampling.native.cpu_attention import EagerRows, Lanes
from data_engine.sampling.native.kv_cache import Caches
from data_engine_kernels import LayerCaches, RowIndex, grouped_decode_attention, members_of
from data_engine_kernels.reference import logits_fp32

# A captured step serves every number of rows up to its own; the rows behind the live ones work for nothing.
GRAPH_ROWS = 16
# Stands in the place of a token that was drawn from logits of which one is NaN or infinite.
NOT_FINITE = -1


class FusedRows:
    """The attention layout of a step as one operation on the first N rows of the caches; `most` may share a slot."""

    def __init__(self, caches: Caches, which: Tensor, most: int) -> None:
        self.caches = caches
        # Rows behind the live ones count on for as long as they work for nothing.
        self.lengths = caches.lengths_R[which].clamp(max=caches.suffix_tokens)
        slots, pages = caches.slots_R[which], caches.pages_RC[which]
        members = members_of(slots, caches.num_slots, most)
        self.index = RowIndex(slots, self.lengths, caches.prefix_lengths_Q, members, pages)
        # Where each row's new token goes.
        newest = self.lengths - 1
        self.page = pages.gather(1, newest[:, None] // caches.page_tokens)[:, 0]
        self.place = newest % caches.page_tokens

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        caches = self.caches
        keys, values = caches.suffix_keys[layer], caches.suffix_values[layer]
        keys[self.page, :, self.place] = key[:, :, 0]
        values[self.page, :, self.place] = value[:, :, 0]
        pools = LayerCaches(caches.prefix_keys[layer], caches.prefix_values[layer], keys, values)
        return grouped_decode_attention(query[:, :, 0], pools, self.index, scale)[:, :, None]


class Steps:
    """What the loop asks of the device; one for a set of caches and sampling values."""

    def __init__(self, model: VisionLanguageModel, caches: Caches, params: SamplingParams, fused: int | None) -> None:
        """`fused`: the most answers a question has, for steps with one operation for all rows; None: plain torch."""
        self.model, self.caches, self.params, self.fused = model, caches, params, fused
        device = model.device
        vocabulary = len(model.head_weight) if params.repetition_penalty != 1 else 0
        self.seen_RV = torch.zeros(caches.num_rows, vocabulary, dtype=torch.bool, device=device)
        self.every_row = torch.arange(caches.num_rows, device=device)
        self.eos = torch.tensor(model.eos_token_ids, device=device)
        self.prefix_lengths = [0] * caches.num_slots
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def prefill(self, prefix_PD: Tensor, slot: int) -> None:
        """Run a prompt: its keys and values into the slot, and the logits of every first token."""
        length = len(prefix_PD)
        if self.caches.reserve(length):
            self._graphs.clear()
        layout = Prefill(*self.caches.slot(slot, length))
        hidden = forward(self.model.decoder, prefix_PD[None], positions(0, length, prefix_PD.device), layout)[0, -1:]
        self.caches.first_logits_QV[slot] = logits_fp32(hidden, self.model.head_weight)[0]
        self.prefix_lengths[slot] = length
        # Not `[slot] = length`: a number that is written to one place, or to some, makes the host wait for a GPU.
        self.caches.prefix_lengths_Q[slot].fill_(length)

    def first(self, places: Sequence[int], keys: Sequence[int], slots: Sequence[int], ends: Sequence[int]) -> Tensor:
        """Start answers in the rows `places` and draw their first tokens [N], which come from the prefix alone."""
        none = [0] * len(places)
        which, state = (self._sent(numbers) for numbers in (places, [none, keys, none, slots, ends]))
        self.caches.state_5R[:, which] = state
        self.seen_RV.index_fill_(0, which, False)
        return self._draw(self.caches.first_logits_QV[state[3]], which)

    def next(self, lanes: Lanes | None, num_rows: int) -> Tensor:
        """Feed each of the first `num_rows` rows its newest token and draw the next [N]; `lanes` for plain torch."""
        if self.fused is None:
            layout = EagerRows(self.caches, lanes, self.prefix_lengths, num_rows)
            return self._advance(self.every_row[:num_rows], layout)
        size = min(-(-num_rows // GRAPH_ROWS) * GRAPH_ROWS, self.caches.num_rows)
        # Rows behind the live ones belong to no question, and write to no row's page.
        self.caches.slots_R[num_rows:size] = -1
        self.caches.pages_RC[num_rows:size] = 0
        if self.model.device.type != "cuda":
            return self._fused(size)[:num_rows]
        # Streams are those of the current device, whatever the tensors'.
        with torch.cuda.device(self.model.device):
            if size not in self._graphs:
                self._graphs[size] = self._captured(size)
            graph, drawn = self._graphs[size]
            graph.replay()
        return drawn[:num_rows]

    def move(self, source: int, target: int, length: int) -> None:
        self.caches.move(source, target, length)
        self.seen_RV[target] = self.seen_RV[source]

    def give_pages(self, places: Sequence[int], numbers: Sequence[int], pages: Sequence[int]) -> None:
        """Row by row, its page number so and so is that page of the caches."""
        where = self._sent([places, numbers, pages])
        self.caches.pages_RC[where[0], where[1]] = where[2]

    def clean(self, pages: Sequence[int]) -> None:
        """Forget suffixes that nobody uses: NaN would reach whoever multiplies it by 0."""
        which = self._sent(pages)
        for cache in (*self.caches.suffix_keys, *self.caches.suffix_values):
            cache.index_fill_(0, which, 0)

    def _sent(self, numbers: Sequence) -> Tensor:
        return sent(torch.tensor(numbers), self.model.device)

    def _fused(self, num_rows: int) -> Tensor:
        which = self.every_row[:num_rows]
        return self._advance(which, FusedRows(self.caches, which, self.fused))

    def _captured(self, num_rows: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A step as a graph, and where its tokens will lie. The step runs for warming up, and is undone."""
        before = self.caches.state_5R.clone(), self.seen_RV.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._fused(num_rows)
                # Suffixes need no undoing: the same token is written to the same place again.
                self.caches.state_5R.copy_(before[0])
                self.seen_RV.copy_(before[1])
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # One pool of memory for all: they run one after the other, and what one drew is copied before the next runs.
        pool = next((other.pool() for other, _ in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            drawn = self._fused(num_rows)
        return graph, drawn

    def _advance(self, which: Tensor, layout: Layout) -> Tensor:
        caches = self.caches
        places = caches.prefix_lengths_Q[caches.slots_R[which]] + caches.lengths_R[which] - 1
        embeds = self.model.embed_tokens(caches.tokens_R[which])
        hidden = forward(self.model.decoder, embeds[:, None], places[:, None], layout)
        return self._draw(logits_fp32(hidden[:, 0], self.model.head_weight), which)

    def _draw(self, logits_NV: Tensor, which: Tensor) -> Tensor:
        """The next token of the rows `which`, noted in their state; NOT_FINITE for those without sound logits."""
        caches, places = self.caches, self.caches.lengths_R[which]
        # One that is NaN or infinite makes the sum so; read with the tokens, it costs the host no wait of its own.
        sound = logits_NV.sum(-1).isfinite()
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
