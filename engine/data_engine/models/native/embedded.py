"""A prompt as embeddings: token ids with a place for the image's features.

Shapes: N image tokens, P prompt tokens, T tokens, D width.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from data_engine.models.device import sent

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
