"""Which images of a scoring pass go through the vision tower together.

What goes together follows from the prompts of a pass and their order alone. A pass is cut from one unit by a number of
tokens that run.json keeps, so any number of ranks, and a run that goes on, makes the same calls.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_engine.models.base import Prompt, VisionLanguageModel

# Of 1,025 patches each, their activations in one layer of the largest tower known here, InternViT-6B, take 0.4 GB in
# half precision: less than those of the answers that follow.
MOST_IMAGES = 16


def images_a_call(model: VisionLanguageModel) -> int:
    """How many images or tiles the vision tower gets at a time.

    On a GPU an image alone leaves most of it idle. On CPU nothing is won. Ranks that share a model make their calls in
    step, each call as it always was.
    """
    return MOST_IMAGES if model.device.type == "cuda" and not model.is_split else 1


@dataclass
class Group:
    """Neighbours among the prompts of a pass."""

    prompts: list[Prompt] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)
    """pixels [B, C, H, W] of those that have any"""

    @property
    def pixels(self) -> Tensor | None:
        """All of them, one behind the other; None where there is nothing to run together."""
        return torch.cat(self.parts) if len(self.parts) > 1 else None

    def has_room(self, pixels: Tensor, most: int) -> bool:
        """Whether these go through the tower with those that are there."""
        if not self.parts:
            return True
        return self.parts[0].shape[1:] == pixels.shape[1:] and sum(map(len, self.parts)) + len(pixels) <= most


def groups(
    prompts: Sequence[Prompt], pixels: Callable[[Prompt], Tensor | None], model: VisionLanguageModel
) -> Iterator[Group]:
    """The prompts in their order, as many images together as `images_a_call` allows; one prompt's are never parted.

    `pixels` of a prompt are [B, C, H, W], B images or tiles; None: it has none, or they cannot go with others.
    """
    most, group = images_a_call(model), Group()
    for prompt in prompts:
        found = pixels(prompt) if most > 1 else None
        if found is not None and not group.has_room(found, most):
            yield group
            group = Group()
        group.prompts.append(prompt)
        if found is not None:
            group.parts.append(found)
    yield group
