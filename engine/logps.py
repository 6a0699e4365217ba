"""Teacher-forced log-probs of answers behind the prefixes of their questions: the packed pass, and the plain way.

Shapes: P prefix tokens, K answers, L tokens of the longest fed answer, H and G query and key/value heads, D width.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_engine.attention import attention_with_lse, causal, causal_with_lse, forward, merged, positions
from data_engine.kernels import token_logps
from data_engine.models.base import VisionLanguageModel


class PackedQuestion:
    """A stretch [prefix | answer 1 | ... | answer K] of a row: each answer sees the prefix and itself.

    No score between two answers is ever computed. The prefix runs as causal. In fp32 on CPU, all answers meet the
    prefix in one product, each meets itself, and both parts are merged: nothing is padded or copied. Elsewhere, the
    answers run as a batch over [prefix | own]: few calls, and one rounding of the result.
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
        """What each token of an answer sees, [L, P + L]."""
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
    """Attention layout of one row of several questions, which do not see each other.

    Everything but attention runs on the row as a whole, without padding.
    """

    def __init__(self, questions: list[PackedQuestion]) -> None:
        self.questions = questions
        self.sizes = [question.size for question in questions]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        stretches = zip(self.questions, *(part.split(self.sizes, dim=2) for part in (query, key, value)), strict=True)
        return torch.cat([question.attend(*parts, scale) for question, *parts in stretches], dim=2)


@dataclass(frozen=True)
class Scored:
    """What is scored together: the prefix of a question [P, width], and the ids of its answers."""

    prefix_PD: Tensor
    answers: list[list[int]]


def pass_tokens(prefix_length: int, answers: list[list[int]]) -> int:
    """Tokens that a question adds to a pass: its prefix, and each different answer without its last token."""
    return prefix_length + sum(len(ids) - 1 for ids in set(map(tuple, answers)))


@torch.inference_mode()
def score_pass(model: VisionLanguageModel, questions: list[Scored]) -> list[list[Tensor]]:
    """log p of each token of each answer of each question, fp32 nats, in one pass; equal answers are computed once.

    Raises ValueError for an answer without tokens.
    """
    if not all(all(question.answers) for question in questions):
        raise ValueError("an answer without tokens has no log-probs")
    device = questions[0].prefix_PD.device
    unique = [list(dict.fromkeys(map(tuple, question.answers))) for question in questions]
    # The last token of an answer predicts nothing that is asked for, so it is not fed.
    fed = [[torch.tensor(ids[:-1], dtype=torch.long, device=device) for ids in answers] for answers in unique]
    sizes = [len(question.prefix_PD) for question in questions]
    row = torch.cat(
        [
            part
            for question, answers in zip(questions, fed, strict=True)
            for part in (question.prefix_PD, model.embed_tokens(torch.cat(answers)))
        ]
    )
    position = [
        torch.arange(start, stop, device=device)
        for size, answers in zip(sizes, fed, strict=True)
        for start, stop in ((0, size), *((size, size + len(ids)) for ids in answers))
    ]
    lengths = [[len(ids) for ids in answers] for answers in fed]
    layout = Packed([PackedQuestion(*stretch, device) for stretch in zip(sizes, lengths, strict=True)])
    hidden = forward(model.decoder, row[None], torch.cat(position)[None], layout)[0]
    rows = torch.cat(list(_predicting(hidden, sizes, lengths)))
    targets = torch.tensor([token for answers in unique for ids in answers for token in ids], device=device)
    counted = [len(ids) for answers in unique for ids in answers]
    logps = iter(token_logps(rows, model.head_weight, targets).cpu().split(counted))
    by_ids = [{ids: next(logps) for ids in answers} for answers in unique]
    return [[found[tuple(ids)] for ids in question.answers] for question, found in zip(questions, by_ids, strict=True)]


def _predicting(hidden: Tensor, sizes: list[int], lengths: list[list[int]]) -> Iterator[Tensor]:
    """The hidden states that predict the answers' tokens: a prefix's last one predicts the first of all its answers."""
    start = 0
    for size, answers in zip(sizes, lengths, strict=True):
        stretch = hidden[start : start + size + sum(answers)]
        for piece in stretch[size:].split(answers):
            yield stretch[size - 1 : size]
            yield piece
        start += len(stretch)


def packed_token_logps(model: VisionLanguageModel, prefix_PD: Tensor, answers: list[list[int]]) -> list[Tensor]:
    """score_pass for one question."""
    return score_pass(model, [Scored(prefix_PD, answers)])[0]


@torch.inference_mode()
def plain_token_logps(model: VisionLanguageModel, prefix_PD: Tensor, answer: list[int]) -> Tensor:
    """log p of each token of one answer, fp32 nats: one causal row, full logits, log-softmax. The reference path."""
    ids = torch.tensor(answer, device=prefix_PD.device)
    row = torch.cat([prefix_PD, model.embed_tokens(ids)])[None]
    hidden = forward(model.decoder, row, positions(0, row.shape[1], row.device))[0]
    logits = (hidden @ model.head_weight.T).float().log_softmax(-1)
    return logits[len(prefix_PD) - 1 : -1].gather(-1, ids[:, None])[:, 0].cpu()
