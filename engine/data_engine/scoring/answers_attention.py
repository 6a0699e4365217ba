"""The attention layout of a scoring pass, whose row packs the answers to several questions behind their prefixes.

An answer attends to its question's prefix, whose keys and values are known, and to itself. No score between two answers
or two questions is ever computed. Everything but attention runs on the whole row.

Shapes: P prefix tokens, K answers, L tokens of the longest fed answer, T tokens of the row, H and G query and key/value
heads, D head width.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_engine.models.layers.attention import LayerCall, Seen
from data_engine.models.layers.attention_math import (
    Bounds,
    attention_with_lse,
    causal_with_lse,
    flash,
    has_flash,
    merged,
    with_sinks,
)
from data_engine.models.layers.noting import Noted
from data_engine.models.layers.prefix import Prefix
from data_engine_kernels import merge_attention


@dataclass(frozen=True)
class Behind:
    """The answers to one question."""

    prefix: Prefix
    lengths: tuple[int, ...]
    """tokens of each answer that are fed; none is empty"""

    @functools.cached_property
    def mask(self) -> Tensor:
        """True where a token of an answer sees a key, [L, P + L]."""
        longest, device = max(self.lengths), self.prefix.end.hidden_D.device
        own = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        seen = torch.ones(longest, self.prefix.length, dtype=torch.bool, device=device)
        return torch.cat([seen, own], dim=1)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, prefix and answer."""
        return self.prefix.length + max(self.lengths)

    def indices(self) -> Tensor:
        """Where each token stands in its sequence [prefix | answer], [T]."""
        device = self.prefix.end.hidden_D.device
        return torch.cat([torch.arange(length, device=device) for length in self.lengths]) + self.prefix.length


class AnswersBehindPrefixes:
    """The layout of the row [answers to question 1 | answers to question 2 | ...]."""

    describes_masks = True

    def __init__(self, questions: Sequence[Behind], device: torch.device, dtype: torch.dtype) -> None:
        self.questions, self.device, self.dtype = questions, device, dtype
        self.sizes = [sum(question.lengths) for question in questions]
        self._biases: dict[tuple[int, Seen], Tensor] = {}

    @functools.cached_property
    def _bounds(self) -> tuple[Bounds, Bounds, Bounds]:
        """Of each answer, of the answers of each question, and of the prefixes."""
        answers = [length for question in self.questions for length in question.lengths]
        prefixes = [question.prefix.length for question in self.questions]
        return tuple(Bounds.of(lengths, self.device) for lengths in (answers, self.sizes, prefixes))

    def attend(self, call: LayerCall) -> Tensor:
        noted = [question.prefix.layers[call.layer] for question in self.questions]
        seen = [None if one.cross else call.seen(question.longest)
                for one, question in zip(noted, self.questions, strict=True)]  # fmt: skip
        usual = call.is_usual and not any(one.cross for one in noted) and not any(seen)
        if usual and has_flash(self.device, self.dtype, call.query.shape[-1]):
            return self._flash(call, noted)
        as_batch = usual and (self.device.type != "cpu" or self.dtype != torch.float32)
        # A layer for image states hands over those of the prompt again.
        new = (call.query,) if noted[0].cross else (call.query, call.key, call.value)
        found = []
        for number, parts in enumerate(zip(*(part.split(self.sizes, dim=2) for part in new), strict=True)):
            if as_batch:
                found.append(_as_batch(self.questions[number], noted[number], parts, call.scale))
            else:
                found.append(self._in_parts(number, call, seen[number], parts))
        return torch.cat(found, dim=2)

    def _flash(self, call: LayerCall, noted: list[Noted]) -> Tensor:
        """Two calls for any number of questions; nothing is padded or masked.

        In the first, each answer attends to itself; in the second, the answers of a question attend to its prefix. The
        two results are merged by their log-sum-exps.
        """
        query, key, value = (part[0].transpose(0, 1) for part in (call.query, call.key, call.value))
        alone, answers, prefixes = self._bounds
        own, own_lse = flash(query, key, value, alone, alone, True, call.scale)
        keys, values = (torch.cat([one[part] for one in noted], dim=1).transpose(0, 1) for part in (0, 1))
        prefix, prefix_lse = flash(query, keys, values, answers, prefixes, False, call.scale)
        return merge_attention(own, own_lse, prefix, prefix_lse)[None].transpose(1, 2)

    def _in_parts(self, number: int, call: LayerCall, seen: Seen | None, parts: tuple[Tensor, ...]) -> Tensor:
        """All answers against the prefix in one product, each against itself, both merged: nothing is padded or copied.

        On CPU in fp32 the fastest way, and the only one that knows windows, softcaps, sinks and image states.
        """
        question = self.questions[number]
        query_HTD, *own = (part[0] for part in parts)
        heads, tokens, width = query_HTD.shape
        noted = question.prefix.layers[call.layer]
        groups = len(noted.keys)
        # The query heads that share a key/value head become rows of one product.
        rows = query_HTD.reshape(1, groups, -1, width)
        bias = noted.bias if noted.cross else self._prefix_bias(number, seen)
        if bias is not None:
            bias = bias.expand(tokens, -1).repeat(heads // groups, 1)[None, None]
        out, lse = (
            part.reshape(heads, tokens, -1)
            for part in attention_with_lse(rows, noted.keys[None], noted.values[None], call.scores, bias)
        )
        if not noted.cross:
            key, value = (part.repeat_interleave(heads // groups, 0) for part in own)
            alone, alone_lse = self._each_alone(number, call, seen, (query_HTD, key, value))
            out, lse = merged(alone, alone_lse, out, lse), torch.logaddexp(alone_lse, lse)
        return with_sinks(out, lse, None if call.sinks is None else call.sinks[:, None, None]).to(query_HTD.dtype)[None]

    def _each_alone(
        self, number: int, call: LayerCall, seen: Seen | None, parts: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Each answer of a question against itself."""
        question = self.questions[number]
        found, usual = [], call.is_usual and seen is None and self.device.type == "cpu"
        for query, key, value in zip(*(part.split(question.lengths, dim=1) for part in parts), strict=True):
            if usual:
                found.append(causal_with_lse(query, key, value, call.scale))
                continue
            at = torch.arange(query.shape[1], device=self.device) + question.prefix.length
            bias = (_CAUSAL if seen is None else seen).bias(at[:, None], at[None])
            mixed, lse = attention_with_lse(query[None], key[None], value[None], call.scores, bias[None, None])
            found.append((mixed[0], lse[0]))
        out, lse = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
        return out, lse

    def _prefix_bias(self, number: int, seen: Seen | None) -> Tensor | None:
        """What the answers' tokens do not see of the prefix, [T, P]."""
        if seen is None:
            return None
        if (number, seen) not in self._biases:
            question = self.questions[number]
            keys = torch.arange(question.prefix.length, device=self.device)[None]
            self._biases[number, seen] = seen.bias(question.indices()[:, None], keys)
        return self._biases[number, seen]


_CAUSAL = Seen(lambda batch, head, query, key: key <= query, None)


def _as_batch(question: Behind, noted: Noted, parts: tuple[Tensor, ...], scale: float) -> Tensor:
    """The answers as a batch over [prefix | own]: few calls, and the result is rounded once."""
    query, key, value = parts

    def unpacked(packed: Tensor) -> Tensor:
        """[1, H, T, D] -> the answers padded to the longest, [K, H, L, D]."""
        answers = packed[0].transpose(0, 1).split(question.lengths)
        return pad_sequence(list(answers), batch_first=True).transpose(1, 2)

    def behind(prefix: Tensor, packed: Tensor) -> Tensor:
        return torch.cat([prefix.expand(len(question.lengths), -1, -1, -1), unpacked(packed)], dim=2)

    out = F.scaled_dot_product_attention(
        unpacked(query), behind(noted.keys, key), behind(noted.values, value),
        attn_mask=question.mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    rows = [answer[:, :length] for answer, length in zip(out, question.lengths, strict=True)]
    return torch.cat(rows, dim=1)[None]
