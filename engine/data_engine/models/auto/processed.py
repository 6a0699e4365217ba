"""A prompt as the processor of a model of transformers makes it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ProcessedPrompt:
    """What the model's own processor made of a conversation and its images, a batch of one."""

    inputs: Mapping[str, Tensor]
    features: Tensor | None = None
    """[B, N, D] of its images or tiles, on the device, where they were computed beforehand"""

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


def pixels_alone(prompt: ProcessedPrompt) -> Tensor | None:
    """Pixels [B, C, H, W] of a prompt whose images or tiles are of one size, and of which nothing else is known."""
    pixels = prompt.inputs.get("pixel_values")
    known = {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}
    return pixels if pixels is not None and pixels.ndim == 4 and known.issuperset(prompt.inputs) else None
