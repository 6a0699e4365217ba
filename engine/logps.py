"""Teacher-forced log-probs of k answers behind one prefix: the packed pass, and the plain way beside it.

Shapes: P prefix tokens, K answers, L tokens of the longest fed answer, H and G query and key/value heads, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_engine.attention import causal, forward, positions
from data_engine.kernels.reference import token_logps
from data_engine.models.base import VisionLanguageModel


class Packed:
    """One row [prefix | answer 1 | ... | answer K]: each answer sees the prefix and itself.

    Everything but attention runs on the packed row, without padding. Attention runs the prefix as causal, and the
    answers as a batch over [prefix | own], so that no score between two answers is ever computed.
    """

    def __init__(self, prefix_length: int, lengths: list[int], device: torch.device) -> None:
        self.prefix_length = prefix_length
        self.lengths = lengths
        longest = max(lengths)
        own = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        seen = torch.ones(longest, prefix_length, dtype=torch.bool, device=device)
        self.mask = torch.cat([seen, own], dim=1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        size = self.prefix_length
        prefix_out = causal(query[:, :, :size], key[:, :, :size], value[:, :, :size], scale)
        query_KHLD = self._unpack(query)
        answers_out = F.scaled_dot_product_attention(
            query_KHLD,
            self._with_prefix(key),
            self._with_prefix(value),
            attn_mask=self.mask,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        rows = [answer[:, :length] for answer, length in zip(answers_out, self.lengths, strict=True)]
        return torch.cat([prefix_out, torch.cat(rows, dim=1)[None]], dim=2)

    def _unpack(self, packed: Tensor) -> Tensor:
        """[1, H, P + sum of lengths, D] -> the answers padded to the longest, [K, H, L, D]."""
        answers = packed[0, :, self.prefix_length :].transpose(0, 1).split(self.lengths)
        return pad_sequence(list(answers), batch_first=True).transpose(1, 2)

    def _with_prefix(self, packed: Tensor) -> Tensor:
        prefix = packed[:, :, : self.prefix_length].expand(len(self.lengths), -1, -1, -1)
        return torch.cat([prefix, self._unpack(packed)], dim=2)


@torch.inference_mode()
def packed_token_logps(model: VisionLanguageModel, prefix_PD: Tensor, answers: list[list[int]]) -> list[Tensor]:
    """log p of each token of each answer, fp32 nats, all answers in one pass behind one prefix.

    Equal answers are computed once. Raises ValueError for an answer without tokens.
    """
    if not all(answers):
        raise ValueError("an answer without tokens has no log-probs")
    unique = list(dict.fromkeys(map(tuple, answers)))
    size, device = len(prefix_PD), prefix_PD.device
    # The last token of an answer predicts nothing that is asked for, so it is not fed.
    fed = [torch.tensor(ids[:-1], dtype=torch.long, device=device) for ids in unique]
    row = torch.cat([prefix_PD, model.embed_tokens(torch.cat(fed))])[None]
    position = torch.cat([torch.arange(size), *(torch.arange(size, size + len(ids)) for ids in fed)])
    layout = Packed(size, [len(ids) for ids in fed], device) if sum(map(len, fed)) else None
    hidden = forward(model.decoder, row, position[None].to(device), layout)[0]
    pieces = hidden[size:].split([len(ids) for ids in fed])
    # Row P - 1 predicts the first token of every answer.
    rows = torch.cat([part for piece in pieces for part in (hidden[size - 1 : size], piece)])
    targets = torch.tensor([token for ids in unique for token in ids], device=device)
    logps = token_logps(rows, model.head_weight, targets).cpu().split([len(ids) for ids in unique])
    by_ids = dict(zip(unique, logps, strict=True))
    return [by_ids[tuple(ids)] for ids in answers]


@torch.inference_mode()
def plain_token_logps(model: VisionLanguageModel, prefix_PD: Tensor, answer: list[int]) -> Tensor:
    """log p of each token of one answer, fp32 nats: one causal row, full logits, log-softmax. The reference path."""
    ids = torch.tensor(answer, device=prefix_PD.device)
    row = torch.cat([prefix_PD, model.embed_tokens(ids)])[None]
    hidden = forward(model.decoder, row, positions(0, row.shape[1], row.device))[0]
    logits = (hidden @ model.head_weight.T).float().log_softmax(-1)
    return logits[len(prefix_PD) - 1 : -1].gather(-1, ids[:, None])[:, 0].cpu()
