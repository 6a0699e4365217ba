"""Teacher-forced log-probs of answers behind the prefixes of their questions: a packed pass, and the reference path.

Shapes: P prefix tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data_engine.models.attention import forward, positions
from data_engine.models.base import VisionLanguageModel
from data_engine.models.decoder import head_width
from data_engine.scoring.packed_attention import packed_layout
from data_engine_kernels import token_logps


@dataclass(frozen=True)
class Scored:
    """A question to score: its prefix [P, width], and the ids of its answers."""

    prefix_PD: Tensor
    answers: list[list[int]]


def pass_tokens(prefix_length: int, answers: list[list[int]]) -> int:
    """Tokens that a question adds to a pass: its prefix, and each distinct answer without its last token."""
    return prefix_length + sum(len(ids) - 1 for ids in set(map(tuple, answers)))


@torch.inference_mode()
def score_pass(model: VisionLanguageModel, questions: list[Scored]) -> list[list[Tensor]]:
    """log p of each token of each answer of each question, fp32 nats, in one pass. Equal answers are computed once.

    Raises ValueError for an answer without tokens.
    """
    if not all(all(question.answers) for question in questions):
        raise ValueError("an answer without tokens has no log-probs")
    device = questions[0].prefix_PD.device
    unique = [list(dict.fromkeys(map(tuple, question.answers))) for question in questions]
    # The last token of an answer is not fed: what it predicts is not scored.
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
    layout = packed_layout(sizes, lengths, device, model.dtype, head_width(model.decoder.config))
    hidden = forward(model.decoder, row[None], torch.cat(position)[None], layout)[0]
    rows = torch.cat(list(_predicting(hidden, sizes, lengths)))
    targets = torch.tensor([token for answers in unique for ids in answers for token in ids], device=device)
    counted = [len(ids) for answers in unique for ids in answers]
    logps = iter(token_logps(rows, model.head_weight, targets).cpu().split(counted))
    by_ids = [{ids: next(logps) for ids in answers} for answers in unique]
    return [[found[tuple(ids)] for ids in question.answers] for question, found in zip(questions, by_ids, strict=True)]


def _predicting(hidden: Tensor, sizes: list[int], lengths: list[list[int]]) -> Iterator[Tensor]:
    """The hidden states that predict the answers' tokens; the prefix's last one predicts each answer's first token."""
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
