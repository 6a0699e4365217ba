"""The attention hook: one attention function, and the masks that go with it, for every decoder of transformers.

A decoder that a family loads has `attn_implementation` NAME. Without a layout in force, it is transformers' own sdpa
with the model's own masks. Under `attending(layout, layers)`, each layer of the decoder hands its queries, keys and
values (after rotary embedding) to the layout, which says which tokens attend to which: that of noting.py for a prompt,
those of sampling/native for a step of sampling, that of scoring/ for scoring. So a family knows neither sampling nor
scoring.

In a pass of answers a mask is not built, but described: `Seen` says of one sequence [prompt | answer] who is seen.
Windows, chunks and kinds of layers need no table so: transformers carries each mask to the layers that it is for.

Shapes: B batch, H query heads, G key/value heads, T and S tokens, D head width.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import FunctionType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data_engine.models.layers.attention_math import Scores, attention_with_lse, with_sinks

NAME = "data_engine"
# Options of an attention call that change no number here; `softcap` and `s_aux` (sinks) are followed.
IGNORED = {
    "dropout", "sliding_window", "position_ids", "is_causal", "cache_position", "use_cache", "output_attentions",
    "output_router_logits", "logits_to_keep", "return_dict", "is_first_iteration", "position_embeddings",
    "output_hidden_states", "chunk_size", "max_length_q", "max_length_k", "token_type_ids",
}  # fmt: skip


class DoesNotFit(Exception):
    """The model does something that a shared prefix cannot follow; says what. The plain path is used then."""


@dataclass(frozen=True)
class Seen:
    """What a model's mask says of one sequence."""

    function: Callable
    """(batch, head, query index, key index) -> bool"""
    local: int | None
    """tokens of the window or chunk; in a sequence that is no longer, the mask is causal"""

    def __getitem__(self, part: object) -> "Seen":
        """Gemma 4 slices its masks."""
        return self

    @property
    def window(self) -> int | None:
        """Tokens of a sequence in which each sees all before it at most; None: of any length, 0: of none."""
        return None if self.function is causal_mask_function else self.local or 0

    @property
    def sliding(self) -> int | None:
        """Tokens that each sees, itself included, where the mask is transformers' sliding window; None: it is another.

        By the function's code and what it holds. Trying it out would not tell it from one that goes by a tensor, whose
        numbers change from call to call; and no number of tries is all of them.
        """
        wanted = self.local and sliding_window_causal_mask_function(self.local)
        return self.local if wanted and _same(self.function, wanted) else None

    def sees_all(self, length: int) -> bool:
        """Whether, in a sequence of that length, each token sees all before it."""
        return self.window is None or length <= self.window

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        """0 where a query sees a key, else -inf, fp32; of indices in the sequence, which are broadcast."""
        zero = torch.zeros((), dtype=torch.long, device=queries.device)
        seen = self.function(zero, zero, queries, keys)
        return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)


def _same(one: object, other: object) -> bool:
    """Whether two functions have the same code, and hold the same numbers, types and functions."""
    if isinstance(other, tuple):
        return isinstance(one, tuple) and len(one) == len(other) and all(map(_same, one, other))
    if not isinstance(other, FunctionType):
        return type(one) is type(other) and one == other
    if not isinstance(one, FunctionType) or one.__code__ is not other.__code__:
        return False
    held = ([cell.cell_contents for cell in each.__closure__ or ()] for each in (one, other))
    return _same(*map(tuple, held)) and _same(one.__defaults__ or (), other.__defaults__ or ())


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a layer hands over."""

    module: nn.Module
    layer: int
    """its number"""
    query: Tensor
    """[B, H, T, D]"""
    key: Tensor
    """[B, G, T, D] of the new tokens; all keys where `mask` is a tensor"""
    value: Tensor
    mask: Tensor | Seen | None
    scale: float
    options: dict

    def alone(self, start: int, length: int) -> "LayerCall":
        """The call that tokens of a row would make with nothing beside them, causal: views, strides included."""

        def part(whole: Tensor) -> Tensor:
            cut = whole[:, :, start : start + length]
            # The stride of the one row is that of a tensor that it fills.
            return cut.as_strided(cut.shape, (length * cut.stride(2), *cut.stride()[1:]), cut.storage_offset())

        return replace(self, query=part(self.query), key=part(self.key), value=part(self.value))

    @property
    def scores(self) -> Scores:
        return Scores(self.scale, self.options.get("softcap"))

    @property
    def sinks(self) -> Tensor | None:
        """[H]"""
        return self.options.get("s_aux")

    @property
    def bias(self) -> Tensor | None:
        """The model's mask as numbers that are added to the scores; causal where it gave none."""
        new, keys, mask = self.query.shape[2], self.key.shape[2], self.mask
        if mask is None:
            if new == 1:
                return None
            mask = torch.ones(new, keys, dtype=torch.bool, device=self.query.device).tril(keys - new)
        if mask.dtype != torch.bool:
            return mask.float()
        return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)

    @property
    def is_usual(self) -> bool:
        """Whether its scores are scale q k^T, and nothing else takes part in the softmax."""
        return self.scores.softcap is None and self.sinks is None and self.key.shape[-1] == self.value.shape[-1]

    def require_known(self) -> None:
        """Raise DoesNotFit for an option that is set and not known here: it may change numbers."""
        known = {"softcap", "s_aux"} | IGNORED
        strange = sorted(name for name, value in self.options.items() if value is not None and name not in known)
        if strange:
            raise DoesNotFit(f"its attention is called with {', '.join(strange)}")

    def seen(self, length: int) -> Seen | None:
        """What a token of an answer sees in a sequence of that length; None: all before it.

        Raises DoesNotFit where the model made a mask of its own.
        """
        if self.mask is None:
            return None
        if not isinstance(self.mask, Seen):
            raise DoesNotFit(f"it makes masks of its own ({type(self.mask).__name__})")
        return None if self.mask.sees_all(length) else self.mask


class Layout(Protocol):
    """Which tokens attend to which in one forward pass."""

    describes_masks: bool
    """masks are `Seen`, since the pass is one of answers behind prompts"""

    def attend(self, call: LayerCall) -> Tensor:
        """Mixed values [B, H, T, D]."""


class _InForce(NamedTuple):
    layout: Layout
    layers: Mapping[nn.Module, int]


_in_force: ContextVar[_InForce | None] = ContextVar("layout", default=None)


@contextlib.contextmanager
def attending(layout: Layout, layers: Mapping[nn.Module, int]) -> Iterator[None]:
    """Have the attention modules in `layers`, a number for each, go by the layout."""
    token = _in_force.set(_InForce(layout, layers))
    try:
        yield
    finally:
        _in_force.reset(token)


def layout_in_force() -> Layout | None:
    """That which attention modules go by now, if any."""
    now = _in_force.get()
    return None if now is None else now.layout


def answers_pass() -> bool:
    """Whether a pass of answers behind their prompts is running."""
    layout = layout_in_force()
    return layout is not None and layout.describes_masks


def keep_out_of_graphs() -> None:
    """Have torch.compile leave the attention alone: it goes by the layout in force."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, torch.compiler.disable(_attention))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Seen | None,
    scaling: float | None = None,
    **options,
) -> tuple[Tensor, None]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    now = _in_force.get()
    number = None if now is None else now.layers.get(module)
    call = LayerCall(module, number, query, key, value, attention_mask, scaling, options)
    if number is None:
        if now is not None and now.layout.describes_masks:
            raise DoesNotFit(f"{type(module).__name__} attends for answers, and did not for a prompt")
        return plain(call).transpose(1, 2), None
    return now.layout.attend(call).transpose(1, 2).contiguous(), None


def _mask(mask_function: Callable, local_size: int | None = None, **options) -> Tensor | Seen | None:
    if answers_pass():
        return Seen(mask_function, local_size)
    return sdpa_mask(mask_function=mask_function, local_size=local_size, **options)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)


def plain(call: LayerCall) -> Tensor:
    """The model's own attention [B, H, T, D]: sdpa, or the formula where sdpa does not know it."""
    if call.scores.softcap is None and call.sinks is None:
        mixed, _ = sdpa_attention_forward(
            call.module, call.query, call.key, call.value, call.mask, scaling=call.scale, **call.options
        )
        return mixed.transpose(1, 2)
    shared = call.query.shape[1] // call.key.shape[1]
    key, value = (part.repeat_interleave(shared, 1) for part in (call.key, call.value))
    mixed, lse = attention_with_lse(call.query, key, value, call.scores, call.bias)
    sinks = None if call.sinks is None else call.sinks[None, :, None, None]
    return with_sinks(mixed, lse, sinks).to(call.value.dtype)
