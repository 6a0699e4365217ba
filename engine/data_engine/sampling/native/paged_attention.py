"""A decode step by one operation on paged caches: the kernel's attention, captured in a CUDA graph on a GPU.

A step always has all rows of the caches; those without an answer are idle. So every product has the same shape in
every step, and an answer's bits follow from its own prefix and tokens alone, whatever runs beside it: docs/gpu.md
has what that rests on. One graph serves all steps, for a step reads nothing from the host; where the model's own code
does, steps run as they are (step_graphs.py).
"""

from collections import abc

import torch
from torch import Tensor

from data_engine.models.layers.attention import DoesNotFit, LayerCall
from data_engine.sampling.native.kv_cache import KVCache
from data_engine.sampling.native.model_runner import ModelRunner
from data_engine.sampling.native.page_pool import PagePool
from data_engine.sampling.native.step_graphs import Captures, Graph
from data_engine.sampling.requests import Sequence
from data_engine_kernels import LayerCaches, RowIndex, Special, grouped_decode_attention, members_of


class FusedRows:
    """The attention layout of a step as one operation on all rows of the caches; `most` may share a slot.

    An idle row, one of slot -1, sees no token, and writes its own to the dummy page.
    """

    describes_masks = True

    def __init__(self, caches: KVCache, most: int) -> None:
        self.pool: PagePool = caches.kept
        self._kinds, pool = caches.kinds, self.pool
        slots, idle = caches.slots_R, caches.slots_R < 0
        lengths = caches.lengths_R.masked_fill(idle, 0)
        members = members_of(slots, caches.num_slots, most)
        tables = pool.pages_RC, pool.prefix_pages_QB
        self.index = RowIndex(slots, lengths, caches.prefix_lengths_Q, members, *tables)
        self._image_index = pool.of_images.index(slots, members) if pool.of_images else None
        # Where each row's new token goes.
        newest = (lengths - 1).clamp(min=0)
        self.page = pool.pages_RC.gather(1, newest[:, None] // pool.page_tokens)[:, 0].masked_fill(idle, 0)
        self.place = newest % pool.page_tokens

    def attend(self, call: LayerCall) -> Tensor:
        layer, special = call.layer, self._special(call)
        if self._kinds[layer].cross:
            caches, index = self.pool.of_images.layers[layer], self._image_index
        else:
            caches, index = LayerCaches(self.pool.keys[layer], self.pool.values[layer]), self.index
            caches.keys[self.page, :, self.place] = call.key[:, :, 0]
            caches.values[self.page, :, self.place] = call.value[:, :, 0]
        return grouped_decode_attention(call.query[:, :, 0], caches, index, call.scale, special)[:, :, None]

    def _special(self, call: LayerCall) -> Special:
        """What of the layer the kernels are told. Raises DoesNotFit for what they do not know."""
        # By the longest sequence that there may ever be: what there were so far depends on the rank. Which image states
        # are seen, the prompt told.
        seen = None if self._kinds[call.layer].cross else call.seen(self.pool.most)
        plain = call.sinks is None and call.key.shape[-1] == call.value.shape[-1]
        if not plain or (seen and not seen.sliding):
            raise DoesNotFit(f"the kernels do not know what layer {call.layer} does")
        return Special(seen and seen.sliding, call.scores.softcap)


class PagedRows:
    """Rows in any order: an answer that ended leaves a gap, which the next one fills."""

    fills_gaps = True

    def __init__(self, samples_per_prompt: int, captures: Captures) -> None:
        """`samples_per_prompt`: the most answers that a question has."""
        self._samples_per_prompt, self._captures = samples_per_prompt, captures
        self.captured: tuple[Graph, Tensor] | None = None
        """the step as a graph, and where its tokens lie"""
        self._changed, self._num_run = True, 0

    def changed(self) -> None:
        """Other rows are idle now."""
        self._changed = True

    def caches_moved(self) -> None:
        """A graph holds addresses."""
        self.captured, self._num_run = None, 0

    def sources(self, rows: abc.Sequence[Sequence], gap: int) -> list[int]:
        """The row that moves into a gap that stays: the last one."""
        return [len(rows) - 1] if gap < len(rows) - 1 else []

    def step(self, runner: ModelRunner, rows: abc.Sequence[Sequence]) -> Tensor:
        """Feed each row its newest token and draw the next [N]."""
        caches, num_rows = runner.caches, len(rows)
        if self._changed:
            caches.slots_R[num_rows:] = -1
            # Their tokens are counted on; none is at a position that no answer reaches.
            caches.lengths_R[num_rows:] = 1
            self._changed = False
        # Streams are those of the current device, whatever the tensors'.
        with torch.cuda.device_of(caches.lengths_R):
            if self.captured is None and self._captures:
                drawn = self._capture_behind_the_first(runner) if caches.states else self._capture(runner)
                if drawn is not None:
                    return drawn[:num_rows]
            if self.captured is None:
                return self._advance(runner)[:num_rows]
            graph, drawn = self.captured
            graph.replay()
        return drawn[:num_rows]

    def _advance(self, runner: ModelRunner) -> Tensor:
        return runner.advance(runner.every_row, FusedRows(runner.caches, self._samples_per_prompt))

    def _capture_behind_the_first(self, runner: ModelRunner) -> Tensor | None:
        """Keep the step as a graph once the first steps have run: what one of these drew, or None.

        A step moves recurrent states on. They are too large to keep a copy, by which it could be undone.
        """
        drawn = self._captures.run(lambda: self._advance(runner), self._num_run)
        if drawn is None:
            self.captured = self._captures.keep(lambda: self._advance(runner))
        self._num_run += 1
        return drawn

    def _capture(self, runner: ModelRunner) -> None:
        """Keep the step as a graph; none where it cannot be captured."""
        before = runner.caches.state_5R.clone(), runner.seen_RV.clone()

        def undo() -> None:
            # Suffixes need no undoing: the same token is written to the same place again.
            runner.caches.state_5R.copy_(before[0])
            runner.seen_RV.copy_(before[1])

        self.captured = self._captures.capture(lambda: self._advance(runner), undo)
