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

from data_engine.models.attention import attention_with_lse, merged, mix
from data_engine.sampling.native.kv_cache import KVCache
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
        self.order = None if in_order else torch.tensor(order, device=device)
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

    def __init__(self, caches: KVCache, lanes: Lanes, prefix_lengths: abc.Sequence[int], num_rows: int) -> None:
        self.caches, self.lanes, self.prefix_lengths = caches, lanes, prefix_lengths
        self.at = caches.lengths_R[:num_rows] - 1
        _, heads, longest, _ = caches.suffix_keys[0].shape
        # Where each row's new token goes, by head, with rows, heads and tokens of a suffix buffer as one dimension.
        each = torch.arange(num_rows * heads, device=self.at.device) * longest
        self.places = each + self.at.repeat_interleave(heads)
        self.runs = [self._run(*run) for run in lanes.runs]

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

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        keys, values = self.caches.suffix_keys[layer], self.caches.suffix_values[layer]
        rows, heads, _, width = query.shape
        for cache, new in ((keys, key), (values, value)):
            cache.view(-1, width).index_copy_(0, self.places, new.reshape(-1, width))
        # The query heads that share a key/value head become rows of one product.
        query_RGgD = query.reshape(rows, key.shape[1], -1, width)
        prefix, prefix_lse = self._prefixes(layer, query_RGgD, scale)
        own, own_lse = self._suffixes(keys, values, query_RGgD, scale)
        return merged(own, own_lse, prefix, prefix_lse).to(query.dtype).view(rows, heads, 1, width)

    def _prefixes(self, layer: int, query_RGgD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        rows, groups, shared, width = query_RGgD.shape
        keys, values = self.caches.prefix_keys[layer], self.caches.prefix_values[layer]
        query = query_RGgD.transpose(0, 1)
        query = query.contiguous() if self.lanes.order is None else query.index_select(1, self.lanes.order)
        parts = []
        for slot, first, last in self.lanes.lanes:
            length = self.prefix_lengths[slot]
            lane = query[:, first:last].reshape(groups, -1, width)
            parts.append(attention_with_lse(lane, keys[slot, :, :length], values[slot, :, :length], scale))
        out, lse = (torch.cat(part, dim=1).view(groups, rows, shared, -1) for part in zip(*parts, strict=True))
        if self.lanes.inverse is not None:
            out, lse = out.index_select(1, self.lanes.inverse), lse.index_select(1, self.lanes.inverse)
        return out.transpose(0, 1), lse.transpose(0, 1)

    def _suffixes(self, keys: Tensor, values: Tensor, query_RGgD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        parts = [
            suffix_attention(query_RGgD[run], keys[run, :, :longest], values[run, :, :longest], behind, scale)
            for run, longest, behind in self.runs
        ]
        out, lse = (torch.cat(part) for part in zip(*parts, strict=True))
        return out, lse


def suffix_attention(
    query_NGgD: Tensor, key_NGSD: Tensor, value_NGSD: Tensor, behind: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Rows that see their own keys, but those `behind` their ends, -inf there and else 0 [n, 1, 1, S]; the values' mix
    [n, G, g, D], and the scores' log-sum-exp [n, G, g, 1].
    """
    if query_NGgD.device.type == "cpu":
        mixed, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_NGgD, key_NGSD, value_NGSD, attn_mask=behind, scale=scale
        )
        return mixed, lse[..., None]
    scores = (query_NGgD @ key_NGSD.transpose(2, 3)).float().mul_(scale)
    return mix(scores if behind is None else scores.add_(behind), value_NGSD)
