"""From logits to the next token: transformers' processors in their order, and random numbers that depend on the answer.

The token is the argmax of log p + Gumbel noise, where the noise of a token is a hash of (the answer's key, position,
token id): no rank, batch or clock enters, and a logit that moves in its last bit moves a draw only at a near-tie.

Shapes: N rows, V vocabulary, C candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Ties at the k-th value stay in, as in transformers; this many of them at most.
TIES = 64
# Candidates that are drawn from at a time. Without top_k they are the whole vocabulary of each row, and a number of
# each is in some ten tensors of 8 bytes: 640 rows of 152,000 tokens would take 4 GB that no budget counts.
MOST_DRAWN = 1 << 23


@dataclass(frozen=True)
class SamplingParams:
    """Every sampling value, explicit: a checkpoint's generation_config.json never enters."""

    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    forced_lengths: bool = False
    """answers end where requests.PromptRequest.lengths says, and nowhere else; for benchmarks"""


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 that wraps: every input bit moves every output bit.

    Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def uniform(keys_N: Tensor, positions_N: Tensor, tokens_NC: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), float64 [N, C], each a function of (key, position, token id) alone."""
    stream = _mix(keys_N + _mix(positions_N + 1))[:, None]
    bits = _mix(stream ^ _mix(tokens_NC + 1))
    # 52 bits and a half: exact in float64, so that neither 0 nor 1 ever comes out.
    return (((bits >> 12) & ((1 << 52) - 1)).double() + 0.5) * 2.0**-52


def penalise(logits_NV: Tensor, seen_NV: Tensor, penalty: float) -> Tensor:
    """Repetition penalty on the tokens that the answer holds already: divide above zero, multiply below."""
    penalised = torch.where(logits_NV > 0, logits_NV / penalty, logits_NV * penalty)
    return torch.where(seen_NV, penalised, logits_NV)


def candidates(logits_NV: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Scores [N, C] after temperature, top-k and top-p, -inf where dropped, and their token ids [N, C].

    Order and semantics as in transformers: temperature, then top-k (ties of the k-th value stay), then top-p (the
    smallest set of best tokens whose probability reaches top_p, at least one).
    """
    scores, vocabulary = logits_NV / params.temperature, logits_NV.shape[-1]
    if params.top_k and params.top_k < vocabulary:
        scores, ids = scores.topk(min(vocabulary, params.top_k + TIES))
        scores = scores.masked_fill(scores < scores[:, params.top_k - 1, None], -torch.inf)
    elif params.top_p < 1:
        scores, ids = scores.sort(descending=True, stable=True)
    else:
        return scores, torch.arange(vocabulary, device=scores.device).expand_as(scores)
    if params.top_p < 1:
        # In fp64: a GPU adds up a row in an order that follows from how many rows there are, and a token at the edge
        # would be in or out by the last bits of fp32.
        probs = scores.double().softmax(-1)
        better = probs.cumsum(-1) - probs
        keep = better < params.top_p
        keep[:, 0] = True
        scores = scores.masked_fill(~keep, -torch.inf)
    return scores, ids


def next_tokens(
    logits_NV: Tensor, keys_N: Tensor, positions_N: Tensor, params: SamplingParams, seen_NV: Tensor | None = None
) -> Tensor:
    """The next token of each row [N]. `keys_N` int64 identifies the answer, `positions_N` the token's place in it.

    Temperature 0 is the argmax; otherwise Gumbel-max, a draw from softmax(scores). Many rows go one part after the
    other.
    """
    vocabulary = logits_NV.shape[-1]
    # As `candidates` has it.
    drawn = min(params.top_k + TIES, vocabulary) if 0 < params.top_k < vocabulary else vocabulary
    rows = max(1, MOST_DRAWN // drawn)
    if params.temperature and len(logits_NV) > rows:
        parts = (slice(start, start + rows) for start in range(0, len(logits_NV), rows))
        return torch.cat([
            next_tokens(logits_NV[at], keys_N[at], positions_N[at], params, None if seen_NV is None else seen_NV[at])
            for at in parts
        ])  # fmt: skip
    logits = logits_NV.float()
    if seen_NV is not None:
        logits = penalise(logits, seen_NV, params.repetition_penalty)
    if params.temperature == 0:
        return logits.argmax(-1)
    scores, ids = candidates(logits, params)
    gumbel = -(-uniform(keys_N, positions_N, ids).log()).log()
    return ids.gather(-1, (scores.double() + gumbel).argmax(-1, keepdim=True))[:, 0]
