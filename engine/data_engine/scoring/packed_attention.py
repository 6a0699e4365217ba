"""Attention layouts of a scoring pass, whose row packs several questions, each [prefix | answer 1 | ... | answer K].

A prefix is causal; an answer attends to its prefix and to itself. No score between two answers or two questions is ever
computed. Everything but attention runs on the whole row.

Shapes: P prefix tokens, K answers, L tokens of the longest fed answer, T tokens of the row, H and G query and key/value
heads, D head width.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_engine.models.attention import (
    Bounds,
    Layout,
    attention_with_lse,
    causal,
    causal_with_lse,
    flash,
    has_flash,
    merged,
)


class PackedQuestion:
    """One question's part of the row, [prefix | answer 1 | ... | answer K].

    In fp32 on CPU, the scores of all answers against the prefix are one product, each answer attends to itself, and
    both parts are merged: nothing is padded or copied. Elsewhere, the answers are a batch over [prefix | own]: few
    calls, and the result is rounded once.
    """

    def __init__(self, prefix_length: int, lengths: list[int], device: torch.device) -> None:
        self.prefix_length, self.lengths = prefix_length, lengths
        self.size = prefix_length + sum(lengths)
        self.device = device

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        size = self.prefix_length
        prefix_out = causal(query[:, :, :size], key[:, :, :size], value[:, :, :size], scale)
        if self.size == size:
            return prefix_out
        in_parts = query.device.type == "cpu" and query.dtype == torch.float32
        answers = self._in_parts if in_parts else self._as_batch
        return torch.cat([prefix_out, answers(query, key, value, scale)], dim=2)

    def _in_parts(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        size, groups = self.prefix_length, key.shape[1]
        query_HTD, key_GTD, value_GTD = (part[0, :, size:] for part in (query, key, value))
        heads, tokens, width = query_HTD.shape
        # The query heads that share a key/value head become rows of one product.
        rows = query_HTD.reshape(groups, -1, width)
        prefix, prefix_lse = (
            part.reshape(heads, tokens, -1)
            for part in attention_with_lse(rows, key[0, :, :size], value[0, :, :size], scale)
        )
        own = (part.repeat_interleave(heads // groups, 0) for part in (key_GTD, value_GTD))
        answers = zip(*(part.split(self.lengths, dim=1) for part in (query_HTD, *own)), strict=True)
        parts = [causal_with_lse(*answer, scale) for answer in answers if answer[0].shape[1]]
        own_out, own_lse = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return merged(own_out, own_lse, prefix, prefix_lse)[None]

    def _as_batch(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        answers_out = F.scaled_dot_product_attention(
            self._unpack(query),
            self._with_prefix(key),
            self._with_prefix(value),
            attn_mask=self.mask,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        rows = [answer[:, :length] for answer, length in zip(answers_out, self.lengths, strict=True)]
        return torch.cat(rows, dim=1)[None]

    @functools.cached_property
    def mask(self) -> Tensor:
        """True where a token of an answer sees a key, [L, P + L]."""
        longest = max(self.lengths)
        own = torch.ones(longest, longest, dtype=torch.bool, device=self.device).tril()
        seen = torch.ones(longest, self.prefix_length, dtype=torch.bool, device=self.device)
        return torch.cat([seen, own], dim=1)

    def _unpack(self, packed: Tensor) -> Tensor:
        """[1, H, P + sum of lengths, D] -> the answers padded to the longest, [K, H, L, D]."""
        answers = packed[0, :, self.prefix_length :].transpose(0, 1).split(self.lengths)
        return pad_sequence(list(answers), batch_first=True).transpose(1, 2)

    def _with_prefix(self, packed: Tensor) -> Tensor:
        prefix = packed[:, :, : self.prefix_length].expand(len(self.lengths), -1, -1, -1)
        return torch.cat([prefix, self._unpack(packed)], dim=2)


class Packed:
    """The layout in plain torch, question by question."""

    def __init__(self, questions: list[PackedQuestion]) -> None:
        self.questions = questions
        self.sizes = [question.size for question in questions]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        stretches = zip(self.questions, *(part.split(self.sizes, dim=2) for part in (query, key, value)), strict=True)
        return torch.cat([question.attend(*parts, scale) for question, *parts in stretches], dim=2)


class Flash:
    """The layout in two calls of flash attention for any number of questions; nothing is padded or masked.

    In the first call, each prefix and each answer attends to itself; in the second, the answers of a question attend to
    its prefix. For tokens of answers, the two results are merged by their log-sum-exps.
    """

    def __init__(self, prefix_lengths: Sequence[int], lengths: Sequence[Sequence[int]], device: torch.device) -> None:
        stretches = list(zip(prefix_lengths, lengths, strict=True))
        self.alone = Bounds.of([length for size, answers in stretches for length in (size, *answers)], device)
        # Answers of one token feed none: a question that has no others needs no second call.
        with_answers = [(size, sum(answers)) for size, answers in stretches if any(answers)]
        self.prefixes = Bounds.of([size for size, _ in with_answers], device)
        self.answers = Bounds.of([tokens for _, tokens in with_answers], device)
        # For each token of the row: whether it is an answer's, and whether its question is in the second call.
        counts = torch.tensor([(size, sum(answers)) for size, answers in stretches]).flatten()
        is_answer = torch.tensor([False, True]).repeat(len(stretches)).repeat_interleave(counts)
        has_answers = torch.tensor([any(answers) for answers in lengths]).repeat_interleave(counts.view(-1, 2).sum(1))
        self.answer_tokens = is_answer.nonzero()[:, 0].to(device)
        self.prefix_tokens = (has_answers & ~is_answer).nonzero()[:, 0].to(device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
        out, lse = flash(query, key, value, self.alone, self.alone, True, scale)
        own, shared = self.answer_tokens, self.prefix_tokens
        if len(own):
            prefix = flash(query[own], key[shared], value[shared], self.answers, self.prefixes, False, scale)
            own_lse, prefix_lse = (part.T[:, :, None] for part in (lse[:, own], prefix[1]))
            out[own] = merged(out[own], own_lse, prefix[0], prefix_lse).to(out.dtype)
        return out.transpose(0, 1)[None]


def packed_layout(
    prefix_lengths: Sequence[int],
    lengths: Sequence[Sequence[int]],
    device: torch.device,
    dtype: torch.dtype,
    head_width: int,
) -> Layout:
    """The layout of a pass, by the length of each question's prefix and the fed tokens of each of its answers."""
    if has_flash(device, dtype, head_width):
        return Flash(prefix_lengths, lengths, device)
    stretches = zip(prefix_lengths, lengths, strict=True)
    return Packed([PackedQuestion(size, list(answers), device) for size, answers in stretches])
