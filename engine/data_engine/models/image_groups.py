"""Which images of a scoring pass go through the vision tower together.

What goes together follows from the prompts of a pass and their order alone. A pass is cut from one unit by a number of
tokens that run.json keeps, so any number of ranks, and a run that goes on, makes the same calls.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from data_engine.models.base import Prompt, VisionLanguageModel

# Of 1,025 patches each, their activations in one layer of the largest tower known here, InternViT-6B, take 0.4 GB in
# half precision: less than those of the answers that follow.
MOST_IMAGES = 16

Pixels = Callable[[Prompt], Tensor | None]
"""of a prompt [B, C, H, W], B images or tiles; None: it has none, or they cannot go with others"""
Group = list[tuple[Prompt, Tensor | None]]
"""neighbours among the prompts of a pass, and their pixels"""


def images_a_call(model: VisionLanguageModel) -> int:
    """How many images or tiles the vision tower gets at a time.

    On a GPU an image alone leaves most of it idle. On CPU nothing is won. Ranks that share a model make their calls in
    step, each call as it always was.
    """
    return MOST_IMAGES if model.device.type == "cuda" and not model.is_split else 1


def encoded(
    prompts: Sequence[Prompt], pixels: Pixels, encode: Callable[[Tensor], Tensor], model: VisionLanguageModel
) -> Iterator[tuple[Prompt, Tensor | None]]:
    """The prompts in their order, and what `encode` makes of their images or tiles [B, N, D], those of a group in one
    call; None where a prompt has none, or they would go alone. A call is made when its first prompt is taken.
    """
    for group in _groups(prompts, pixels, images_a_call(model)):
        parts = [part for _, part in group if part is not None]
        features, at = encode(torch.cat(parts)) if len(parts) > 1 else None, 0
        for prompt, part in group:
            if features is None or part is None:
                yield prompt, None
                continue
            yield prompt, features[at : at + len(part)]
            at += len(part)


def _groups(prompts: Sequence[Prompt], pixels: Pixels, most: int) -> Iterator[Group]:
    """As many images together as `most`; one prompt's are never parted."""
    group: Group = []
    for prompt in prompts:
        found = pixels(prompt) if most > 1 else None
        if found is not None and not _has_room([part for _, part in group if part is not None], found, most):
            yield group
            group = []
        group.append((prompt, found))
    yield group


def _has_room(parts: Sequence[Tensor], more: Tensor, most: int) -> bool:
    """Whether these go through the tower with those that are there."""
    if not parts:
        return True
    return parts[0].shape[1:] == more.shape[1:] and sum(map(len, parts)) + len(more) <= most
