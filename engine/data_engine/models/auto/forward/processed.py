"""A prompt as the processor of a model of transformers makes it, and its images run beforehand."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from data_engine.models import image_groups
from data_engine.models.device import sent


@dataclass(frozen=True)
class ProcessedPrompt:
    """What the model's own processor made of a conversation and its images, a batch of one."""

    inputs: Mapping[str, Tensor]
    features: Tensor | None = None
    """[B, N, D] of its images or tiles, on the device, where they were computed beforehand"""

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


def on_device(prompt: ProcessedPrompt, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """A prompt's inputs; pixels in the model's dtype, whatever the processor made of them."""
    return {
        name: sent(value, device).to(dtype) if value.is_floating_point() else sent(value, device)
        for name, value in prompt.inputs.items()
        if prompt.features is None or name != "pixel_values"
    }


def pixels_alone(prompt: ProcessedPrompt) -> Tensor | None:
    """Pixels [B, C, H, W] of a prompt whose images or tiles are of one size, and of which nothing else is known."""
    pixels = prompt.inputs.get("pixel_values")
    known = {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}
    return pixels if pixels is not None and pixels.ndim == 4 and known.issuperset(prompt.inputs) else None


class Encoding(Protocol):
    """A model whose vision tower can be called alone."""

    device: torch.device
    is_split: bool

    def image_features(self, pixels: Tensor) -> Tensor:
        """[B, N, D] of images or tiles [B, C, H, W]."""


@torch.inference_mode()
def encoded_together(model: Encoding, prompts: Sequence[ProcessedPrompt]) -> Iterator[ProcessedPrompt]:
    """As VisionLanguageModel.encoded, whether or not it is known that the tower takes them so."""
    for prompt, features in image_groups.encoded(prompts, pixels_alone, model.image_features, model):
        yield replace(prompt, features=features)
