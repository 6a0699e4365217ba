"""A decode step by one operation on paged suffixes: the kernel's attention, captured in CUDA graphs on a GPU.

A step reads nothing from the host, so it can be captured, one graph for each multiple of 16 rows, and replayed; where
the model's own code does, steps run as they are (step_graphs.py).
"""

from collections import abc

import torch
from torch import Tensor

from data_engine.models.attention import DoesNotFit, LayerCall
from data_engine.sampling.native.kv_cache import KVCache
from data_engine.sampling.native.model_runner import ModelRunner
from data_engine.sampling.native.step_graphs import Captures, Graph
from data_engine.sampling.requests import Sequence
from data_engine_kernels import LayerCaches, RowIndex, grouped_decode_attention, members_of

# A captured step serves every number of rows up to its own; the rows behind the live ones are padding.
GRAPH_ROWS = 16


class FusedRows:
    """The attention layout of a step as one operation on the first N rows of the caches; `most` may share a slot."""

    describes_masks = True

    def __init__(self, caches: KVCache, which: Tensor, most: int) -> None:
        self.caches = caches
        # Padding rows count on for as long as the graph replays them.
        self.lengths = caches.lengths_R[which].clamp(max=caches.suffix_tokens)
        slots, pages = caches.slots_R[which], caches.pages_RC[which]
        members = members_of(slots, caches.num_slots, most)
        self.index = RowIndex(slots, self.lengths, caches.prefix_lengths_Q, members, pages)
        # Where each row's new token goes.
        newest = self.lengths - 1
        self.page = pages.gather(1, newest[:, None] // caches.page_tokens)[:, 0]
        self.place = newest % caches.page_tokens

    def attend(self, call: LayerCall) -> Tensor:
        caches, layer = self.caches, call.layer
        usual = call.is_usual and not caches.kinds[layer].cross
        if not usual or call.seen(caches.prefix_tokens + caches.suffix_tokens):
            raise DoesNotFit(f"the kernels do not know what layer {layer} does")
        keys, values = caches.suffix_keys[layer], caches.suffix_values[layer]
        keys[self.page, :, self.place] = call.key[:, :, 0]
        values[self.page, :, self.place] = call.value[:, :, 0]
        pools = LayerCaches(caches.prefix_keys[layer], caches.prefix_values[layer], keys, values)
        return grouped_decode_attention(call.query[:, :, 0], pools, self.index, call.scale)[:, :, None]


class PagedRows:
    """Rows in any order: an answer that ended leaves a gap, which the next one fills."""

    fills_gaps = True

    def __init__(self, samples_per_prompt: int, captures: Captures) -> None:
        """`samples_per_prompt`: the most answers that a question has."""
        self._samples_per_prompt, self._captures = samples_per_prompt, captures
        self.graphs: dict[int, tuple[Graph, Tensor]] = {}
        """by their number of rows: captured steps, and where their tokens lie"""

    def changed(self) -> None:
        """Nothing here depends on which rows there are."""

    def caches_moved(self) -> None:
        """Graphs hold addresses."""
        self.graphs.clear()

    def sources(self, rows: abc.Sequence[Sequence], gap: int) -> list[int]:
        """The row that moves into a gap that stays: the last one."""
        return [len(rows) - 1] if gap < len(rows) - 1 else []

    def step(self, runner: ModelRunner, rows: abc.Sequence[Sequence]) -> Tensor:
        """Feed each row its newest token and draw the next [N]."""
        caches, num_rows = runner.caches, len(rows)
        size = min(-(-num_rows // GRAPH_ROWS) * GRAPH_ROWS, caches.num_rows)
        # Padding rows belong to no question, and write to the dummy page.
        caches.slots_R[num_rows:size] = -1
        caches.pages_RC[num_rows:size] = 0
        # A step moves recurrent states on, which the steps that warm up a graph would not take back.
        if caches.states:
            return self._advance(runner, size)[:num_rows]
        # Streams are those of the current device, whatever the tensors'.
        with torch.cuda.device_of(caches.lengths_R):
            if size not in self.graphs and self._captures:
                self._capture(runner, size)
            if size not in self.graphs:
                return self._advance(runner, size)[:num_rows]
            graph, drawn = self.graphs[size]
            graph.replay()
        return drawn[:num_rows]

    def _advance(self, runner: ModelRunner, num_rows: int) -> Tensor:
        which = runner.every_row[:num_rows]
        return runner.advance(which, FusedRows(runner.caches, which, self._samples_per_prompt))

    def _capture(self, runner: ModelRunner, num_rows: int) -> None:
        """Keep a step as a graph; none at all where it cannot be captured."""
        before = runner.caches.state_5R.clone(), runner.seen_RV.clone()

        def undo() -> None:
            # Suffixes need no undoing: the same token is written to the same place again.
            runner.caches.state_5R.copy_(before[0])
            runner.seen_RV.copy_(before[1])

        # One pool of memory for all: they run one after the other, and what one drew is copied before the next runs.
        pool = next((graph.pool() for graph, _ in self.graphs.values()), None)
        captured = self._captures.capture(lambda: self._advance(runner, num_rows), undo, pool)
        if captured is None:
            self.graphs.clear()
        else:
            self.graphs[num_rows] = captured
