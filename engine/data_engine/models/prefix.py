"""A prompt run once, and what all its answers then share: its keys and values, its end, and where answers go on.

Shapes: P prompt tokens, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data_engine.models.attention import DoesNotFit, Noted, Noting, attending
from data_engine.models.base import Prompt, PromptEnd, VisionLanguageModel


@dataclass(frozen=True)
class Prefix:
    """What a prompt leaves behind."""

    length: int
    """P"""
    layers: dict[int, Noted]
    """by number; without those that the prompt did not run, as a layer for image states without an image"""
    end: PromptEnd

    @property
    def crosses(self) -> dict[int, tuple[Tensor, Tensor]]:
        """By layer of transformers' cache, keys and values [1, G, S, D] of image states."""
        return {number: (noted.keys[None], noted.values[None]) for number, noted in self.layers.items() if noted.cross}


@torch.inference_mode()
def run_prefix(model: VisionLanguageModel, prompt: Prompt) -> Prefix:
    """Run a prompt: vision tower, splicing, positions and masks are the model's own.

    Raises attention.DoesNotFit where the model cannot share it.
    """
    noting = Noting(prompt.length)
    with attending(noting, model.attention_layers):
        end = model.run_prompt(prompt)
    for number, noted in noting.noted.items():
        kind = model.layers[number]
        if noted.cross != kind.cross:
            raise DoesNotFit(f"layer {number} keeps {noted.keys.shape[1]} keys of {prompt.length} tokens")
    return Prefix(prompt.length, noting.noted, end)
