"""Caches of a decode step, empty, and what prompts leave for them."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch

from data_engine.models.base import PromptEnd
from data_engine.models.layers.head import Head
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.layers.noting import Noted
from data_engine.models.layers.prefix import Prefix
from data_engine.sampling.native.kv_cache import KVCache, SlotBuffers
from data_engine.sampling.native.page_pool import PagePool

# A layer as most decoders have it.
USUAL = LayerKind(2, 16, 16)


def model_of(*kinds: LayerKind, cache_layers: Sequence[object] = ()) -> SimpleNamespace:
    """What the caches ask of a model."""
    cpu = torch.device("cpu")
    head = Head(torch.zeros(10, 4))
    kept = {"layers": kinds, "cache_layers": cache_layers, "max_positions": 1000}
    return SimpleNamespace(device=cpu, dtype=torch.float32, head=head, **kept)


def in_buffers(model, num_rows: int, num_slots: int, suffix_tokens: int) -> KVCache:
    return KVCache(model, num_rows, num_slots, SlotBuffers(model, num_rows, num_slots, suffix_tokens))


def in_pool(model, num_rows: int, num_slots: int, suffix_tokens: int, num_pages: int) -> KVCache:
    return KVCache(model, num_rows, num_slots, PagePool(model, num_rows, num_slots, suffix_tokens, num_pages))


def prefix_of(length: int, layers: dict[int, Noted], cache_layers: Sequence[object] = (), more: int = 0) -> Prefix:
    """What a prompt leaves; its answers begin `more` positions behind its number of tokens."""
    return Prefix(length, layers, PromptEnd(torch.zeros(4), length + more, cache_layers))


def noted(groups: int, length: int, width: int, **rest: object) -> Noted:
    """Keys and values of noise."""
    return Noted(torch.randn(groups, length, width), torch.randn(groups, length, width), **rest)
