"""Several prompts of a model of transformers in one row of its text decoder.

Each prompt goes through the model's own forward up to the decoder: vision tower, splicing and positions are its own.
The forward ends there, and the decoder runs what all prompts hand it, one behind the other.

Shapes: P prompt tokens, M rows of a pass, N image tokens, D width.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.configuration_utils import PretrainedConfig

from data_engine.models.auto.forward.own_forward import OwnForward
from data_engine.models.auto.forward.processed import ProcessedPrompt
from data_engine.models.auto.parts import prompt_cache
from data_engine.models.base import PromptEnd
from data_engine.models.layers import rotary
from data_engine.models.layers.answer_cache import CACHE
from data_engine.models.layers.attention import DoesNotFit
from data_engine.models.layers.layer_kind import LayerKind

# What decoders are handed, and along which dimension prompts follow one another: tokens, or those of images.
EMBEDS, POSITIONS = "inputs_embeds", "position_ids"
# DeepStack: the places of image tokens, and by layer the features added there. As Qwen calls them, and as Granite does.
DEEP = (("visual_pos_masks", "deepstack_visual_embeds"), ("vision_mask", "deepstack_features"))
# What says nothing of single tokens, and is handed to the pass as to a prompt alone.
OTHERS = {"attention_mask", CACHE, "use_cache", "cache_position", "return_dict", "logits_to_keep"}


class Deep(NamedTuple):
    """What layers add to image tokens."""

    names: tuple[str, str]
    """of the decoder's arguments"""
    mask: Tensor
    """[1, P] or [1, P, 1]: the places of image tokens"""
    features: Sequence[Tensor] | Mapping[int, Tensor]
    """[N, D] by layer"""


class Front(NamedTuple):
    """What a prompt's forward hands the decoder."""

    embeds_1PD: Tensor
    positions: Tensor
    """[.., P]; with multimodal RoPE, an axis before it"""
    deep: Deep | None
    next_position: int


class Packable(Protocol):
    """A model of transformers whose layers are known."""

    decoder: nn.Module
    device: torch.device
    text_config: PretrainedConfig
    layers: Sequence[LayerKind]
    cache_layers: Sequence[object]
    why_plain: str | None
    is_split: bool
    answers_in_rows: bool
    own_forward: OwnForward

    def run_forward(self, prompt: ProcessedPrompt, cache: Cache) -> object:
        """The model's own forward of a prompt."""

    def run_decoder(self, given: Mapping[str, object]) -> Tensor:
        """Last hidden states [M, D] of one row."""


class _AtDecoder(Exception):
    """The forward has reached the decoder."""

    def __init__(self, given: Mapping[str, object]) -> None:
        super().__init__()
        self.given = given


def may_pack(model: Packable) -> bool:
    """Whether its decoder goes row by row but for attention, and each layer's attention is known by its call.

    Not so: a state that goes from token to token, tables by the longest prompt, experts, whose products are as large as
    all rows make them.
    """
    crosses = any(kind.cross for kind in model.layers)
    experts = any("expert" in name for name, _ in model.decoder.named_modules())
    others = crosses or experts or rotary.follow_largest(model.decoder)
    return not (model.is_split or model.answers_in_rows or others)


@torch.inference_mode()
def run_prompts(model: Packable, prompts: Sequence[ProcessedPrompt], num_rows: int) -> list[PromptEnd]:
    """See VisionLanguageModel.run_prompts. Raises DoesNotFit for a prompt that hands its decoder something else."""
    fronts = [model.own_forward.mirrored_or_plain(functools.partial(_front, model, prompt)) for prompt in prompts]
    hidden_MD = model.run_decoder(_joined(fronts, num_rows))
    ends, end = [], 0
    for front, prompt in zip(fronts, prompts, strict=True):
        end += prompt.length
        # A copy, which does not keep the whole row alive.
        ends.append(PromptEnd(hidden_MD[end - 1].clone(), front.next_position, model.cache_layers))
    return ends


def _front(model: Packable, prompt: ProcessedPrompt) -> Front:
    def reached(module: nn.Module, args: tuple, options: dict) -> None:
        if args:
            raise DoesNotFit("its text decoder is called by place")
        raise _AtDecoder(options)

    # Behind the hooks that are there.
    with model.decoder.register_forward_pre_hook(reached, with_kwargs=True):
        try:
            model.run_forward(prompt, prompt_cache(model.text_config, model.device))
        except _AtDecoder as stopped:
            return _checked(model, prompt, stopped.given)
    raise DoesNotFit("its text decoder is not called as a module")


def _checked(model: Packable, prompt: ProcessedPrompt, given: Mapping[str, object]) -> Front:
    # Switches that are off say nothing.
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    if strange := sorted(given.keys() - {EMBEDS, POSITIONS, *itertools.chain(*DEEP)} - OTHERS):
        raise DoesNotFit(f"its text decoder is called with {', '.join(strange)}")
    # Of tokens, as the processor made it: a prompt alone hides none. Any other says who sees whom.
    mask = given.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise DoesNotFit("it makes masks of its own")
    embeds, positions = given[EMBEDS], given.get(POSITIONS)
    if positions is None:
        positions = torch.arange(prompt.length, device=embeds.device)[None]
    deep = next((Deep(names, *(given[name] for name in names)) for names in DEEP if given.keys() >= {*names}), None)
    return Front(embeds, positions, deep, model.own_forward.next_position(prompt))


def _joined(fronts: Sequence[Front], num_rows: int) -> dict[str, object]:
    """The decoder's arguments for prompts one behind the other, filled up with zeros."""
    embeds = _row([front.embeds_1PD for front in fronts], 1, num_rows)
    given = {EMBEDS: embeds, POSITIONS: _row(_alike([front.positions for front in fronts]), -1, num_rows)}
    if any(front.deep for front in fronts):
        given |= _deep_joined(fronts, num_rows)
    return given


def _deep_joined(fronts: Sequence[Front], num_rows: int) -> dict[str, object]:
    first, *others = (front.deep for front in fronts if front.deep)

    def places(front: Front) -> Tensor:
        # Made of a mask, so that the host knows them where it knows that one.
        none = first.mask.new_zeros(1, front.embeds_1PD.shape[1], *first.mask.shape[2:])
        return front.deep.mask if front.deep else none

    def joined(layer: int) -> Tensor:
        return torch.cat([deep.features[layer] for deep in (first, *others)])

    by_name = isinstance(first.features, Mapping)
    features = {layer: joined(layer) for layer in (first.features if by_name else range(len(first.features)))}
    mask = _row([places(front) for front in fronts], 1, num_rows)
    return dict(zip(first.names, (mask, features if by_name else [*features.values()]), strict=True))


def _alike(positions: Sequence[Tensor]) -> list[Tensor]:
    """Those of a prompt without a picture have one axis, where others have several: the same on each."""
    axes = max(positions, key=lambda one: one.ndim).shape[:-1]
    return [one.expand(*axes, -1) for one in positions]


def _row(parts: Sequence[Tensor], along: int, num_rows: int) -> Tensor:
    rest = list(parts[0].shape)
    rest[along] = num_rows - sum(part.shape[along] for part in parts)
    return torch.cat([*parts, parts[0].new_zeros(rest)], along)
