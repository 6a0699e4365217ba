"""A prompt as embeddings: token ids with a place for the image's features.

Shapes: N image tokens, P prompt tokens, T tokens, D width.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from data_engine.models.base import sent
from data_engine.models.layers.answer_cache import CACHE, PassingLayer
from data_engine.models.layers.decoder import head_width
from data_engine.models.layers.layer_kind import LayerKind

# Placeholder in prompt ids for the image's features; no tokenizer has a negative id.
IMAGE_TOKEN = -200


class Embeds(Protocol):
    """What a prompt asks of a model."""

    device: torch.device

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        """Image features in the decoder's space [B, N, D]."""

    def embed_tokens(self, token_ids_T: Tensor) -> Tensor:
        """[T, D]"""


@dataclass(frozen=True)
class SplicedPrompt:
    """Token ids with one IMAGE_TOKEN, and the image's pixels [3, H, W]; ids alone where there is no image."""

    ids: list[int]
    pixels: Tensor | None
    image_tokens: int
    features_ND: Tensor | None = None
    """of the image, on the device, where they were computed beforehand"""

    @property
    def length(self) -> int:
        return len(self.ids) if self.pixels is None else len(self.ids) - 1 + self.image_tokens

    @torch.inference_mode()
    def embeds(self, model: Embeds) -> Tensor:
        """The prompt's token embeddings with the image's features in place of IMAGE_TOKEN [P, D]."""
        if self.pixels is None:
            return model.embed_tokens(sent(torch.tensor(self.ids, dtype=torch.long), model.device))
        features_ND = self.features_ND
        if features_ND is None:
            [features_ND] = model.encode_images(sent(self.pixels[None], model.device))
        at = self.ids.index(IMAGE_TOKEN)
        before, after = (
            sent(torch.tensor(part, dtype=torch.long), model.device) for part in (self.ids[:at], self.ids[at + 1 :])
        )
        return torch.cat([model.embed_tokens(before), features_ND, model.embed_tokens(after)])


def decode(decoder: nn.Module, embeds_BTD: Tensor, positions_BT: Tensor, cache: Cache | None) -> Tensor:
    """Last hidden states [B, T, D] of one pass of the decoder; without a layout in force, attention is causal."""
    return decoder(
        inputs_embeds=embeds_BTD, position_ids=positions_BT, **{CACHE: cache}, use_cache=cache is not None
    ).last_hidden_state


def attention_layers(decoder: nn.Module) -> dict[nn.Module, int]:
    """The modules of a LLaMA-like decoder that attend, numbered."""
    return {layer.self_attn: number for number, layer in enumerate(decoder.layers)}


def layer_kinds(decoder: nn.Module) -> tuple[LayerKind, ...]:
    """The kinds of its layers."""
    config = decoder.config
    width = head_width(config)
    return (LayerKind(config.num_key_value_heads, width, width),) * config.num_hidden_layers


def cache_layers(decoder: nn.Module) -> list[PassingLayer]:
    """Layers of a cache without a recurrent state."""
    return [PassingLayer()] * decoder.config.num_hidden_layers
