"""The sampling loop: k answers a question from one prefix cache, rows refilled from a queue as they finish.

A row is one answer. The prompt of a question is run once; its keys and values are stored once and read by all its
rows, each of which adds a suffix cache of its own. A finished row is refilled at once, and a prefix is freed with its
last answer, so that one long answer idles nothing but itself.

Shapes: R rows, H and G query and key/value heads, P prefix tokens, S suffix tokens so far, D head width, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_engine.attention import Prefill, forward, positions
from data_engine.kernels.reference import logits_fp32
from data_engine.models.base import VisionLanguageModel
from data_engine.sampler import SamplingParams, next_tokens


@dataclass(frozen=True)
class Request:
    """One question: how to get its prefix [P, width], and one random-number key an answer."""

    prefix: Callable[[], Tensor]
    keys: list[int]


@dataclass(frozen=True)
class Sampled:
    """One answer: where it belongs, its ids (EOS included), and why it ended."""

    request: int
    sample_index: int
    token_ids: list[int]
    finish_reason: str


class _Question:
    """A prefix that rows are reading: keys and values by layer [G, P, D], and the logits of every first token [V]."""

    def __init__(self, model: VisionLanguageModel, request: Request) -> None:
        prefix = request.prefix()
        prefill = Prefill()
        hidden = forward(model.decoder, prefix[None], positions(0, len(prefix), prefix.device), prefill)[0, -1:]
        self.length = len(prefix)
        self.keys, self.values = prefill.keys, prefill.values
        self.first_logits = logits_fp32(hidden, model.head_weight)[0]
        self.waiting = len(request.keys)


@dataclass
class _Row:
    request: int
    sample_index: int
    key: int
    question: _Question
    tokens: list[int] = field(default_factory=list)


class _Suffixes:
    """Suffix keys and values of all rows, by layer [R, G, S, D]; the live rows are always the first ones."""

    def __init__(self, model: VisionLanguageModel, rows: int, length: int) -> None:
        config = model.decoder.config
        heads = config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, rows, heads, length, width)
        self.keys = torch.empty(shape, device=model.device, dtype=model.dtype)
        self.values = torch.empty(shape, device=model.device, dtype=model.dtype)

    def move(self, source: int, target: int, length: int) -> None:
        for cache in (self.keys, self.values):
            cache[:, target, :, :length] = cache[:, source, :, :length]


class Rows:
    """Attention layout of one decode step: each row's new token sees its question's prefix and its own suffix."""

    def __init__(self, rows: list[_Row], suffixes: _Suffixes, device: torch.device) -> None:
        self.suffixes = suffixes
        self.at = torch.tensor([len(row.tokens) - 1 for row in rows], device=device)
        self.order = torch.arange(len(rows), device=device)
        self.longest = max(len(row.tokens) for row in rows)
        self.hidden = (torch.arange(self.longest, device=device) > self.at[:, None])[:, None, None]
        lanes: dict[int, tuple[_Question, list[int]]] = {}
        for number, row in enumerate(rows):
            lanes.setdefault(row.request, (row.question, []))[1].append(number)
        self.lanes = [(question, torch.tensor(numbers, device=device)) for question, numbers in lanes.values()]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        keys, values = self.suffixes.keys[layer, : len(query)], self.suffixes.values[layer, : len(query)]
        keys[self.order, :, self.at], values[self.order, :, self.at] = key[:, :, 0], value[:, :, 0]
        rows, heads, _, width = query.shape
        # The query heads that share a key/value head become rows of one product.
        query = query.view(rows, key.shape[1], -1, width)
        scores = (query @ keys[:, :, : self.longest].transpose(2, 3)).float().mul_(scale)
        scores.masked_fill_(self.hidden, -torch.inf)
        own = _partial(scores, values[:, :, : self.longest])
        prefix = [torch.empty_like(part) for part in own]
        for question, lane in self.lanes:
            for whole, part in zip(prefix, self._prefix(layer, question, query[lane], scale), strict=True):
                whole[lane] = part
        return _merge(own, prefix).to(query.dtype).view(rows, heads, 1, width)

    def _prefix(self, layer: int, question: _Question, query_nGgD: Tensor, scale: float) -> list[Tensor]:
        rows, groups, shared, width = query_nGgD.shape
        query = query_nGgD.transpose(0, 1).reshape(groups, rows * shared, width)
        scores = (query @ question.keys[layer].transpose(1, 2)).float().mul_(scale)
        parts = _partial(scores, question.values[layer])
        return [part.view(groups, rows, shared, -1).transpose(0, 1) for part in parts]


def _partial(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over a part of the keys: unnormalised mixture, sum of weights, and the maximum both are relative to."""
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top).exp_()
    return (weights.to(values.dtype) @ values).float(), weights.sum(-1, keepdim=True), top


def _merge(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Tensor:
    """The softmax over both parts, from its halves (online softmax, arXiv:1805.02867)."""
    top = torch.maximum(one[2], other[2])
    scale_one, scale_other = (one[2] - top).exp_(), (other[2] - top).exp_()
    return (one[0] * scale_one + other[0] * scale_other) / (one[1] * scale_one + other[1] * scale_other)


class _Loop:
    """The rows in flight and the queue behind them."""

    def __init__(
        self, model: VisionLanguageModel, requests: Iterable[Request], params: SamplingParams, num_rows: int
    ) -> None:
        self.model, self.params, self.num_rows = model, params, num_rows
        self.queue = deque(
            (number, request, sample_index)
            for number, request in enumerate(requests)
            for sample_index in range(len(request.keys))
        )
        self.num_rows = min(num_rows, len(self.queue))
        self.questions: dict[int, _Question] = {}
        self.rows: list[_Row] = []
        self.suffixes = _Suffixes(model, self.num_rows, params.max_new_tokens)
        vocabulary = len(model.head_weight) if params.repetition_penalty != 1 else 0
        self.seen = torch.zeros(self.num_rows, vocabulary, dtype=torch.bool, device=model.device)
        self.eos = torch.tensor(model.eos_token_ids, device=model.device)

    def run(self) -> Iterator[Sampled]:
        while self.queue or self.rows:
            if self.rows:
                self._draw(self.rows, self._step(), 0)
                yield from self._drop_finished()
            while self.queue and len(self.rows) < self.num_rows:
                yield from self._admit()

    def _admit(self) -> Iterator[Sampled]:
        """Fill the free rows from the queue and draw their first tokens, which come from the prefix alone."""
        first = len(self.rows)
        while self.queue and len(self.rows) < self.num_rows:
            number, request, sample_index = self.queue.popleft()
            if number not in self.questions:
                self.questions[number] = _Question(self.model, request)
            self.rows.append(_Row(number, sample_index, request.keys[sample_index], self.questions[number]))
        fresh = self.rows[first:]
        self.seen[first : len(self.rows)] = False
        self._draw(fresh, torch.stack([row.question.first_logits for row in fresh]), first)
        yield from self._drop_finished()

    def _draw(self, rows: list[_Row], logits: Tensor, first: int) -> None:
        device = logits.device
        keys = torch.tensor([row.key for row in rows], device=device)
        places = torch.tensor([len(row.tokens) for row in rows], device=device)
        early = places < self.params.min_new_tokens
        logits[:, self.eos] = logits[:, self.eos].masked_fill(early[:, None], -torch.inf)
        seen = self.seen[first : first + len(rows)] if self.seen.shape[1] else None
        drawn = next_tokens(logits, keys, places, self.params, seen)
        if seen is not None:
            seen.scatter_(1, drawn[:, None], True)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            row.tokens.append(token)

    def _step(self) -> Tensor:
        """Feed each row its newest token: logits of the next [R, V]."""
        device = self.model.device
        tokens = torch.tensor([row.tokens[-1] for row in self.rows], device=device)
        places = torch.tensor([[row.question.length + len(row.tokens) - 1] for row in self.rows], device=device)
        layout = Rows(self.rows, self.suffixes, device)
        hidden = forward(self.model.decoder, self.model.embed_tokens(tokens)[:, None], places, layout)
        return logits_fp32(hidden[:, 0], self.model.head_weight)

    def _drop_finished(self) -> Iterator[Sampled]:
        """Give out the rows that ended, and close their gaps from behind so that the live rows stay in front."""
        number = 0
        while number < len(self.rows):
            row = self.rows[number]
            ended = row.tokens[-1] in self.model.eos_token_ids
            if not ended and len(row.tokens) < self.params.max_new_tokens:
                number += 1
                continue
            last = self.rows.pop()
            if last is not row:
                self.suffixes.move(len(self.rows), number, len(last.tokens))
                self.seen[number] = self.seen[len(self.rows)]
                self.rows[number] = last
            row.question.waiting -= 1
            if not row.question.waiting:
                del self.questions[row.request]
            yield Sampled(row.request, row.sample_index, row.tokens, "stop" if ended else "length")


@torch.inference_mode()
def sample(
    model: VisionLanguageModel, requests: Iterable[Request], params: SamplingParams, num_rows: int
) -> list[Sampled]:
    """All answers of all requests, in order of (request, sample_index); `num_rows` answers are decoded at a time.

    The draws depend on the keys alone; num_rows changes only rounding (about 1e-6 in fp32).
    """
    found = list(_Loop(model, requests, params, num_rows).run())
    return sorted(found, key=lambda sampled: (sampled.request, sampled.sample_index))
