"""Answers behind prefixes full of noise, and attention by its definition: what the layouts are held against.

Shapes: H and G query and key/value heads, P prefix tokens, T tokens of the row of answers, S keys, D head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

from data_engine.models.base import PromptEnd
from data_engine.models.layers.attention import LayerCall, Seen
from data_engine.models.layers.attention_math import Bounds
from data_engine.models.layers.noting import Noted
from data_engine.models.layers.prefix import Prefix
from data_engine.scoring.answers_attention import AnswersBehindPrefixes, Behind

SCALE = 0.3
# (query index, key index) of one sequence -> whether it is seen, by hand.
Sees = Callable[[int, int], bool]


@dataclass(frozen=True)
class Options:
    """What a layer may do beside scale q k^T."""

    sees: Sees | None = None
    """of keys up to the query; None: all of them"""
    local: int | None = None
    """the window's or chunk's tokens"""
    softcap: float | None = None
    sinks: Tensor | None = None
    function: Callable | None = None
    """what transformers makes of it; None: the same as `sees`, of tensors"""

    def call(self, query: Tensor, key: Tensor, value: Tensor, layer: int = 0) -> LayerCall:
        """As transformers makes it: the mask is described by a function of indices that are tensors."""
        mask = None
        if self.sees is not None:
            by_hand = lambda batch, head, query, key: (key <= query) & self.sees(query, key)  # noqa: E731
            mask = Seen(self.function or by_hand, self.local)
        options = {"softcap": self.softcap, "s_aux": self.sinks, "dropout": 0.0, "sliding_window": self.local}
        return LayerCall(nn.Identity(), layer, query, key, value, mask, SCALE, options)


def window(tokens: int) -> Options:
    """A token sees so many, itself included."""
    function = sliding_window_causal_mask_function(tokens)
    return Options(lambda query, key: key > query - tokens, tokens, function=function)


def chunks(tokens: int) -> Options:
    """A token sees those of its chunk."""
    function = chunked_causal_mask_function(tokens, torch.zeros(1, dtype=torch.long))
    return Options(lambda query, key: key // tokens == query // tokens, tokens, function=function)


def one_token(query_HD: Tensor, key_GSD: Tensor, value_GSD: Tensor, options: Options) -> Tensor:
    """One softmax a head over these keys, and over the sink of the head, whose value is 0; fp64 [H, D]."""
    out, shared = [], len(query_HD) // len(key_GSD)
    for head, query in enumerate(query_HD.double()):
        scores = SCALE * key_GSD[head // shared].double() @ query
        if options.softcap is not None:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        if options.sinks is not None:
            scores = torch.cat([scores, options.sinks[head : head + 1].double()])
        out.append(scores.softmax(0)[: key_GSD.shape[1]] @ value_GSD[head // shared].double())
    return torch.stack(out)


def keys_seen(index: int, options: Options) -> list[int]:
    """Indices of the keys that the token of that index sees."""
    return [key for key in range(index + 1) if options.sees is None or options.sees(index, key)]


def question(
    length: int, lengths: Sequence[int], groups: int, width: int = 16, value_width: int = 16, **noted: object
) -> Behind:
    """Answers of these lengths behind a prefix of noise; `noted`: see models.layers.noting.Noted."""
    generator = torch.Generator().manual_seed(length)
    size = noted.pop("states", length)
    keys, values = (torch.randn(groups, size, wide, generator=generator) for wide in (width, value_width))
    end = PromptEnd(torch.zeros(1), length, ())
    return Behind(Prefix(length, {0: Noted(keys, values, **noted)}, end), tuple(lengths))


def drawn(questions: Sequence[Behind], heads: tuple[int, int], width: int = 16, value_width: int = 16) -> list[Tensor]:
    """Queries, keys and values of the row of answers, [1, H or G, T, D]."""
    generator, tokens = torch.Generator().manual_seed(0), sum(sum(one.lengths) for one in questions)
    sizes = ((heads[0], width), (heads[1], width), (heads[1], value_width))
    return [torch.randn(1, number, tokens, wide, generator=generator) for number, wide in sizes]


def laid_out(
    questions: Sequence[Behind], parts: list[Tensor], options: Options, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What the layout of a scoring pass makes of the row; `dtype` is what it takes the model for."""
    return AnswersBehindPrefixes(questions, torch.device("cpu"), dtype).attend(options.call(*parts))


def moved(one: Behind, device: torch.device, dtype: torch.dtype) -> Behind:
    """A question whose prefix lies on a device, in that dtype."""
    keys, values, *_ = one.prefix.layers[0]
    end = one.prefix.end._replace(hidden_D=one.prefix.end.hidden_D.to(device))
    noted = Noted(keys.to(device, dtype), values.to(device, dtype))
    return Behind(Prefix(one.prefix.length, {0: noted}, end), one.lengths)


def check_on(
    questions: Sequence[Behind], parts: list[Tensor], options: Options, device: torch.device, dtype: torch.dtype
) -> None:
    """The layout on a device against attention's definition, of the same rounded numbers.

    In half precision, weights are rounded, and the results of prefix and answer and of both; scores and sums are not.
    So a result may be off by three roundings of what it would be if all values were positive.
    """
    call = options.call(*(part.to(device, dtype) for part in parts))
    if options.sinks is not None:
        call = replace(call, options=call.options | {"s_aux": options.sinks.to(device)})
    found = AnswersBehindPrefixes([moved(one, device, dtype) for one in questions], device, dtype).attend(call)
    assert found.dtype == dtype
    rounded = [moved(moved(one, device, dtype), torch.device("cpu"), torch.float32) for one in questions]
    query, key, value = (part.to(dtype).float() for part in parts)
    off = (found.cpu().float() - dense(rounded, [query, key, value], options)).abs()
    for one in rounded:
        one.prefix.layers[0] = one.prefix.layers[0]._replace(values=one.prefix.layers[0].values.abs())
    roundings = 0 if dtype == torch.float32 else 3 * torch.finfo(dtype).eps / 2
    allowed = 1e-5 + roundings * dense(rounded, [query, key, value.abs()], options)
    assert bool((off <= allowed).all()), f"off by {float((off / allowed).max()):.2f} times what is allowed"


def dense(questions: Sequence[Behind], parts: list[Tensor], options: Options) -> Tensor:
    """The same token by token: each sees keys of its question's prefix and of its own answer, and no other."""
    out, (query, key, value) = [], [part[0] for part in parts]
    first = 0
    for one in questions:
        noted = one.prefix.layers[0]
        for length in one.lengths:
            own = slice(first, first + length)
            keys, values = (torch.cat(both, 1) for both in ((noted.keys, key[:, own]), (noted.values, value[:, own])))
            for place in range(length):
                seen = keys_seen(one.prefix.length + place, options)
                out.append(one_token(query[:, first + place], keys[:, seen], values[:, seen], options))
            first += length
    return torch.stack(out, 1)[None].float()


def plain_flash(
    query: Tensor, key: Tensor, value: Tensor, queries: Bounds, keys: Bounds, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """attention_math.flash by its definition, sequence by sequence, head by head, rounded where it rounds."""
    assert queries.starts.dtype == keys.starts.dtype == torch.int32
    out, lse = torch.full_like(query, torch.nan), torch.full((query.shape[1], len(query)), torch.nan)
    shared = query.shape[1] // key.shape[1]
    ends = [bounds.starts.tolist() for bounds in (queries, keys)]
    assert [len(query), len(key)] == [each[-1] for each in ends]
    for first, last, first_key, last_key in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False):
        assert 0 < last - first <= queries.longest
        assert 0 < last_key - first_key <= keys.longest
        for head in range(query.shape[1]):
            seen, values = (part[first_key:last_key, head // shared] for part in (key, value))
            scores = scale * query[first:last, head].float() @ seen.float().T
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            out[first:last, head] = scores.softmax(-1).to(values.dtype) @ values
            lse[head, first:last] = scores.logsumexp(-1)
    return out, lse
