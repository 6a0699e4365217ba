"""The CPU's fast path of a decode step: where rows lie, and the attention of each row's new token in plain torch.

A new token sees its question's prefix, and its own suffix.

Rows of one question are one product with its prefix, a lane; rows that lie side by side with suffixes of similar length
are one product with them, a run, and the loop keeps its rows in order of length, so that runs are few. Both parts are
merged by their log-sum-exps.

Shapes: R rows, n rows of a lane or run, H and G query and key/value heads, g = H / G, P prefix and S suffix tokens, D
head width.
"""

from collections import abc

import torch
from torch import Tensor

from data_engine.models.device import sent
from data_engine.models.layers.attention import LayerCall, Seen
from data_engine.models.layers.attention_math import attention_with_lse, merged, with_sinks
from data_engine.sampling.native.kv_cache import KVCache, SlotBuffers
from data_engine.sampling.native.model_runner import ModelRunner
from data_engine.sampling.requests import Sequence

# Suffix tokens that a run reads for nothing, since they lie behind the end of its shorter rows, cost about what another
# run costs on its own.
WASTE = 128


class Lanes:
    """Which rows read which prefix and lie in which run; the same for all steps until a row comes or goes."""

    def __init__(self, slots: abc.Sequence[int], lengths: abc.Sequence[int], device: torch.device) -> None:
        """Of each row: its slot, and its suffix's tokens with the one that the next step adds."""
        order = sorted(range(len(slots)), key=slots.__getitem__)
        in_order = order == list(range(len(order)))
        self.order = None if in_order else sent(torch.tensor(order), device)
        self.inverse = None if in_order else self.order.argsort()
        # Of each lane: slot, first and last + 1 of its rows in that order.
        self.lanes: list[tuple[int, int, int]] = []
        for place, row in enumerate(order):
            first = self.lanes.pop()[1] if self.lanes and self.lanes[-1][0] == slots[row] else place
            self.lanes.append((slots[row], first, place + 1))
        self.runs = runs(lengths)
        self.steps = 0


def runs(lengths: abc.Sequence[int]) -> list[tuple[int, int, int, bool]]:
    """Neighbours of similar length, as (first, last + 1, longest, whether one is shorter)."""
    firsts, longest, total = [], 0, 0
    for row, length in enumerate(lengths):
        longest, total = max(longest, length), total + length
        if not firsts or longest * (row + 1 - firsts[-1]) - total > WASTE:
            firsts.append(row)
            longest = total = length
    found = zip(firsts, [*firsts[1:], len(lengths)], strict=True)
    return [(a, b, max(lengths[a:b]), min(lengths[a:b]) < max(lengths[a:b])) for a, b in found]


class OrderedRows:
    """Rows in order of length, the longest first, since a step takes neighbours of similar length as one product."""

    fills_gaps = False

    def __init__(self) -> None:
        self._lanes: Lanes | None = None

    def changed(self) -> None:
        """Lanes are those of certain rows."""
        self._lanes = None

    def caches_moved(self) -> None:
        """Nothing here holds an address."""

    def sources(self, rows: abc.Sequence[Sequence], gap: int) -> list[int]:
        """The last row of each run behind the gap: rows of about one length change places, so that few move."""
        lasts = (last - 1 for _, last, _, _ in runs([row.drawn for row in rows]))
        return [last for last in lasts if last > gap]

    def step(self, runner: ModelRunner, rows: abc.Sequence[Sequence]) -> Tensor:
        """Feed each row its newest token and draw the next [N]."""
        if self._lanes is None:
            self._lanes = Lanes([row.slot for row in rows], [row.drawn for row in rows], runner.model.device)
        layout = EagerRows(runner.caches, self._lanes, runner.prefix_lengths, len(rows))
        drawn = runner.advance(runner.every_row[: len(rows)], layout)
        self._lanes.steps += 1
        return drawn


class EagerRows:
    """The attention layout of one step in plain torch, for the first R rows of the caches."""

    describes_masks = True

    def __init__(self, caches: KVCache, lanes: Lanes, prefix_lengths: abc.Sequence[int], num_rows: int) -> None:
        self.caches, self.lanes, self.prefix_lengths = caches, lanes, prefix_lengths
        self.kept: SlotBuffers = caches.kept
        self.at = caches.lengths_R[:num_rows] - 1
        self.runs = [self._run(*run) for run in lanes.runs]
        # Tokens of the longest sequence, prefix and suffix.
        self.longest = max(prefix_lengths[slot] for slot, _, _ in lanes.lanes) + max(run[1] for run in self.runs)
        self._places: dict[int, Tensor] = {}
        self._biases: dict[Seen, tuple[list[Tensor], list[Tensor]]] = {}

    def _run(self, first: int, last: int, longest: int, ragged: bool) -> tuple[slice, int, Tensor | None]:
        """A run's rows, its longest suffix by now, and -inf where its rows have no token yet [n, 1, 1, S]."""
        longest += self.lanes.steps
        if not ragged:
            return slice(first, last), longest, None
        places = torch.arange(longest, device=self.at.device)
        mask = torch.zeros(last - first, 1, 1, longest, dtype=self.caches.dtype, device=self.at.device)
        return (
            slice(first, last),
            longest,
            mask.masked_fill_((places > self.at[first:last, None])[:, None, None], -torch.inf),
        )

    def attend(self, call: LayerCall) -> Tensor:
        query, groups = call.query, call.key.shape[1]
        rows, heads, _, width = query.shape
        # The query heads that share a key/value head become rows of one product.
        query_RGgD = query.reshape(rows, groups, -1, width)
        if self.caches.kinds[call.layer].cross:
            out, lse = self._lanes_attention(query_RGgD, call, self._image_states(call.layer))
        else:
            self._keep(call)
            prefix_biases, suffix_biases = self._biases_of(call.seen(self.longest))
            prefix, prefix_lse = self._lanes_attention(query_RGgD, call, self._prefixes(call.layer, prefix_biases))
            own, own_lse = self._suffixes(call, query_RGgD, suffix_biases)
            out, lse = merged(own, own_lse, prefix, prefix_lse), None
            if call.sinks is not None:
                lse = torch.logaddexp(own_lse, prefix_lse)
        if call.sinks is not None:
            out = with_sinks(out, lse, call.sinks.view(1, groups, -1, 1))
        return out.to(query.dtype).reshape(rows, heads, 1, -1)

    def _keep(self, call: LayerCall) -> None:
        """Write each row's new key and value into its suffix."""
        groups = call.key.shape[1]
        if groups not in self._places:
            # By head, with rows, heads and tokens of a suffix buffer as one dimension.
            each = torch.arange(len(self.at) * groups, device=self.at.device) * self.kept.suffix_tokens
            self._places[groups] = each + self.at.repeat_interleave(groups)
        for cache, new in ((self.kept.suffix_keys, call.key), (self.kept.suffix_values, call.value)):
            width = new.shape[-1]
            cache[call.layer].view(-1, width).index_copy_(0, self._places[groups], new.reshape(-1, width))

    def _prefixes(self, layer: int, biases: list[Tensor] | None) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """By lane, the keys and values of its prefix [G, P, D], and what its rows do not see of them [n, P]."""
        keys, values = self.kept.prefix_keys[layer], self.kept.prefix_values[layer]
        lengths = [(slot, self.prefix_lengths[slot]) for slot, _, _ in self.lanes.lanes]
        biases = [None] * len(lengths) if biases is None else biases
        return [
            (keys[slot, :, :length], values[slot, :, :length], bias)
            for (slot, length), bias in zip(lengths, biases, strict=True)
        ]

    def _image_states(self, layer: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """By lane, the keys and values that its prompt noted of image states, and what it does not see of them."""
        noted = [self.kept.crosses[slot][layer] for slot, _, _ in self.lanes.lanes]
        return [(one.keys, one.values, one.bias) for one in noted]

    def _lanes_attention(
        self, query_RGgD: Tensor, call: LayerCall, lanes: list[tuple[Tensor, Tensor, Tensor | None]]
    ) -> tuple[Tensor, Tensor]:
        """Each row over the keys of its lane: mixed values [R, G, g, D], and the scores' log-sum-exps [R, G, g, 1]."""
        rows, groups, shared, width = query_RGgD.shape
        query = query_RGgD.transpose(0, 1)
        query = query.contiguous() if self.lanes.order is None else query.index_select(1, self.lanes.order)
        parts = []
        for (_, first, last), (keys, values, bias) in zip(self.lanes.lanes, lanes, strict=True):
            lane = query[:, first:last].reshape(1, groups, -1, width)
            if bias is not None:
                bias = bias.expand(last - first, -1).repeat_interleave(shared, 0)[None, None]
            parts.append(attention_with_lse(lane, keys[None], values[None], call.scores, bias))
        out, lse = (torch.cat(part, dim=2)[0].view(groups, rows, shared, -1) for part in zip(*parts, strict=True))
        if self.lanes.inverse is not None:
            out, lse = out.index_select(1, self.lanes.inverse), lse.index_select(1, self.lanes.inverse)
        return out.transpose(0, 1), lse.transpose(0, 1)

    def _suffixes(self, call: LayerCall, query_RGgD: Tensor, biases: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        keys, values = self.kept.suffix_keys[call.layer], self.kept.suffix_values[call.layer]
        biases = [behind for *_, behind in self.runs] if biases is None else biases
        parts = [
            attention_with_lse(query_RGgD[run], keys[run, :, :longest], values[run, :, :longest], call.scores, bias)
            for (run, longest, _), bias in zip(self.runs, biases, strict=True)
        ]
        out, lse = (torch.cat(part) for part in zip(*parts, strict=True))
        return out, lse

    def _biases_of(self, seen: Seen | None) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        """What rows do not see, by lane of its prefix [n, P], and by run of their suffixes [n, 1, 1, S]."""
        if seen is None:
            return None, None
        if seen not in self._biases:
            lengths = self.caches.prefix_lengths_Q[self.caches.slots_R[: len(self.at)]]
            newest = (lengths + self.at)[:, None]
            ordered = newest if self.lanes.order is None else newest[self.lanes.order]
            device = self.at.device
            prefixes = [
                seen.bias(ordered[first:last], torch.arange(self.prefix_lengths[slot], device=device)[None])
                for slot, first, last in self.lanes.lanes
            ]
            suffixes = []
            for run, longest, behind in self.runs:
                keys = lengths[run, None] + torch.arange(longest, device=device)[None]
                bias = seen.bias(newest[run], keys)[:, None, None]
                suffixes.append(bias if behind is None else bias + behind)
            self._biases[seen] = prefixes, suffixes
        return self._biases[seen]
