"""A prompt run once, and what all its answers then share: its keys and values, its end, and where answers go on.

Shapes: P prompt tokens, M rows of a pass, H query heads, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_engine.models.base import Prompt, PromptEnd, VisionLanguageModel
from data_engine.models.layers.attention import DoesNotFit, LayerCall, attending
from data_engine.models.layers.noting import Noted, Noting


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
    return _prefix(model, prompt.length, noting.noted, end)


@torch.inference_mode()
def run_prefixes(model: VisionLanguageModel, prompts: Sequence[Prompt], num_rows: int) -> list[Prefix]:
    """Run several prompts in one pass of the decoder, which is filled up to `num_rows` rows; only where the model
    `packs_prompts`.

    Attention is that of each prompt alone, call for call. All else in a layer sees another number of rows: a prompt has
    the bits of `run_prefix` where a row's are the same for both numbers (sampling/native/packing.py). Nothing that is
    left of one prompt keeps another's alive.
    """
    layout = _NotingEach([prompt.length for prompt in prompts])
    with attending(layout, model.attention_layers):
        ends = model.run_prompts(prompts, num_rows)
    return [
        _prefix(model, prompt.length, noting.noted, end)
        for prompt, noting, end in zip(prompts, layout.each, ends, strict=True)
    ]


def _prefix(model: VisionLanguageModel, length: int, layers: Mapping[int, Noted], end: PromptEnd) -> Prefix:
    for number, noted in layers.items():
        if noted.cross != model.layers[number].cross:
            raise DoesNotFit(f"layer {number} keeps {noted.keys.shape[1]} keys of {length} tokens")
    return Prefix(length, dict(layers), end)


class _NotingEach:
    """The layout of prompts one behind the other in a row: for each, the model's own attention, as if it were alone."""

    describes_masks = False

    def __init__(self, lengths: Sequence[int]) -> None:
        self.each = [Noting(length) for length in lengths]

    def attend(self, call: LayerCall) -> Tensor:
        # Nothing but a mask tells the model's attention that tokens do not see all before them.
        if call.mask is not None:
            raise DoesNotFit("prompts that run in one pass attend without a mask")
        start, parts = 0, []
        for noting in self.each:
            parts.append(noting.attend(call.alone(start, noting.length)))
            start += noting.length
        # Rows that only fill the pass up: no prompt's numbers depend on theirs.
        [_, heads, num_rows, _], width = call.query.shape, call.value.shape[-1]
        parts.append(call.query.new_zeros(1, heads, num_rows - start, width))
        # As the caller lays them out.
        return torch.cat([part.transpose(1, 2) for part in parts], 1).transpose(1, 2)
