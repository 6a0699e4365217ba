"""What native families share: a prompt is token ids with a place for the image's features, and goes in as embeddings.

Shapes: N image tokens, P prompt tokens, K rows, T tokens, V vocabulary, D width.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor, nn
from transformers.cache_utils import Cache

from data_engine.errors import BadRow, UserError
from data_engine.models import tower
from data_engine.models.base import Prompt, PromptEnd, VisionLanguageModel, sent
from data_engine.models.layers import rotary
from data_engine.models.layers.answer_cache import PassingLayer, passing
from data_engine.models.layers.decoder import head_width
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.prompt_maker import PromptMaker
from data_engine.questions import thoughts
from data_engine.questions.conversation import Conversation
from data_engine.questions.thoughts import ReadAnswer

# Placeholder in prompt ids for the image's features; no tokenizer has a negative id.
IMAGE_TOKEN = -200


class EmbeddingModel(VisionLanguageModel, Protocol):
    """A model whose prompts are `SplicedPrompt`s."""

    image_tokens: int
    """N, tokens of an image in a prompt"""
    around_image: tuple[int, ...]
    """ids that stand around an image, and nowhere else"""

    def pixels(self, image: Image, crop: bool, max_megapixels: float) -> Tensor:
        """RGB image -> [3, H, W] fp32 on CPU. Raises images.BadImage for one that would get too large."""

    def prompt_ids(self, question: str) -> list[int]:
        """The prompt up to the start of the answer, with one IMAGE_TOKEN."""

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """An answer's ids behind that prompt."""

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
    def embeds(self, model: EmbeddingModel) -> Tensor:
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


def prompt(
    model: EmbeddingModel, conversation: Conversation, images: Sequence[Image], crop: bool, max_megapixels: float
) -> SplicedPrompt:
    """Raises BadRow for anything but one question about one image, and what `pixels` raises."""
    [image], question = images if conversation.is_single else [None], single_question(model, conversation)
    pixels = model.pixels(image, crop, max_megapixels)
    return SplicedPrompt(model.prompt_ids(question), pixels, model.image_tokens)


def prompt_without_images(model: EmbeddingModel, conversation: Conversation) -> SplicedPrompt:
    """See VisionLanguageModel.prompt_without_images: the prompt of training but for what stands for the image.

    Raises BadRow for anything but one question about one image.
    """
    image = {IMAGE_TOKEN, *model.around_image}
    ids = [token for token in model.prompt_ids(single_question(model, conversation)) if token not in image]
    return SplicedPrompt(ids, None, 0)


def shared_prompt(
    model: EmbeddingModel,
    conversations: Sequence[Conversation],
    images: Sequence[Image],
    crop: bool,
    max_megapixels: float,
) -> tuple[SplicedPrompt, list[list[int]]]:
    """See VisionLanguageModel.shared_prompt. At least one id stands behind it."""
    first = prompt(model, conversations[0], images, crop, max_megapixels)
    # The pixels of the image are the same for all.
    prompts = [replace(first, ids=model.prompt_ids(single_question(model, one))) for one in conversations]
    length = min(len(one.ids) for one in prompts) - 1
    length = next((at for at in range(length) if len({one.ids[at] for one in prompts}) > 1), length)
    if IMAGE_TOKEN not in prompts[0].ids[:length]:
        raise UserError("conversations can share a beginning only where all up to the image is equal")
    return replace(prompts[0], ids=prompts[0].ids[:length]), [one.ids[length:] for one in prompts]


def single_question(model: EmbeddingModel, conversation: Conversation) -> str:
    """The question of a conversation that is one image and one question. Raises BadRow for another."""
    if conversation.is_single:
        return conversation.question
    number, turns = conversation.num_images, len(conversation.messages) - (conversation.system is not None)
    found = {
        f"{number} images" if number else "no image": number != 1,
        "a system text": conversation.system is not None,
        "earlier turns": turns > 1,
        "the beginning of an answer": bool(conversation.answer_start),
    }
    told = ", ".join(name for name, is_so in found.items() if is_so) or "a text before its image, or several behind it"
    raise BadRow(f"the family {model.family} takes one image and one question, and nothing else; the row has {told}")


def encode_answer(model: EmbeddingModel, conversation: Conversation, answer: str) -> list[int]:
    """See VisionLanguageModel.encode_answer. Raises BadRow for anything but one question about one image."""
    return model.answer_ids(single_question(model, conversation), answer)


def read_answer(model: PromptMaker, conversation: Conversation, token_ids: list[int]) -> ReadAnswer:
    """See VisionLanguageModel.read_answer: the marks of thoughts are plain text, and no prompt opens one."""
    return thoughts.read(token_ids, model.text, model.text)


@torch.inference_mode()
def encoded(model: EmbeddingModel, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
    """See VisionLanguageModel.encoded."""

    def pixels(prompt: Prompt) -> Tensor | None:
        shown = isinstance(prompt, SplicedPrompt) and prompt.pixels is not None
        return prompt.pixels[None] if shown else None

    for group in tower.groups(prompts, pixels, model):
        if group.pixels is None:
            yield from group.prompts
            continue
        features = iter(model.encode_images(sent(group.pixels, model.device)))
        for one in group.prompts:
            yield one if pixels(one) is None else replace(one, features_ND=next(features))


def run_prompt(model: EmbeddingModel, prompt: SplicedPrompt) -> PromptEnd:
    """See VisionLanguageModel.run_prompt."""
    embeds = prompt.embeds(model)
    positions = torch.arange(len(embeds), device=embeds.device)[None]
    hidden = decode(model, embeds[None], positions, passing(len(model.layers)))
    return PromptEnd(hidden[0, -1], len(embeds), model.cache_layers)


def packs_prompts(model: EmbeddingModel) -> bool:
    """See VisionLanguageModel.packs_prompts. A rotary table that follows the longest prompt would be another one."""
    return not model.is_split and not rotary.follow_largest(model.decoder)


def run_prompts(model: EmbeddingModel, prompts: Sequence[SplicedPrompt], num_rows: int) -> list[PromptEnd]:
    """See VisionLanguageModel.run_prompts."""
    each = [prompt.embeds(model) for prompt in prompts]
    lengths = [len(embeds) for embeds in each]
    rest = num_rows - sum(lengths)
    row = torch.cat([*each, each[0].new_zeros(rest, each[0].shape[1])])
    positions = torch.cat([torch.arange(length, device=row.device) for length in (*lengths, rest)])
    hidden = decode(model, row[None], positions[None], passing(len(model.layers)))[0]
    # Copies, which do not keep the whole row alive.
    lasts = (hidden[end - 1].clone() for end in itertools.accumulate(lengths))
    return [PromptEnd(last, length, model.cache_layers) for last, length in zip(lasts, lengths, strict=True)]


def run_answers(model: EmbeddingModel, ids_KT: Tensor, positions_KT: Tensor, cache: Cache) -> Tensor:
    """See VisionLanguageModel.run_answers."""
    return decode(model, model.embed_tokens(ids_KT), positions_KT, cache)


def plain_logits(model: EmbeddingModel, prompt: SplicedPrompt, ids: list[int]) -> Tensor:
    """See VisionLanguageModel.plain_logits: one causal row, full logits."""
    embeds = prompt.embeds(model)
    row = torch.cat([embeds, model.embed_tokens(torch.tensor(ids, device=embeds.device))])
    hidden = decode(model, row[None], torch.arange(len(row), device=row.device)[None], None)[0]
    return (hidden[len(embeds) - 1 : -1] @ model.head.weight.T).float()


def plain_end(model: EmbeddingModel, prompt: SplicedPrompt) -> tuple[Tensor, Tensor]:
    """See VisionLanguageModel.plain_end."""
    embeds = prompt.embeds(model)
    hidden = decode(model, embeds[None], torch.arange(len(embeds), device=embeds.device)[None], None)[0, -1]
    return hidden, (hidden @ model.head.weight.T).float()


def decode(model: EmbeddingModel, embeds_BTD: Tensor, positions_BT: Tensor, cache: Cache | None) -> Tensor:
    """Last hidden states [B, T, D] of one pass of the decoder; without a layout in force, attention is causal."""
    return model.decoder(
        inputs_embeds=embeds_BTD, position_ids=positions_BT, past_key_values=cache, use_cache=cache is not None
    ).last_hidden_state


def find_layers(model: EmbeddingModel) -> None:
    """See VisionLanguageModel.find_layers: they are LLaMA's, as the configuration says."""


def whole_modules(model: EmbeddingModel) -> list[tuple[nn.Module, str]]:
    """See VisionLanguageModel.whole_modules."""
    return [(model.decoder, "embed_tokens")]


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


@torch.inference_mode()
def idle_decode(model: EmbeddingModel) -> None:
    """See VisionLanguageModel.idle_decode."""
    embeds = torch.zeros(1, 1, model.head.weight.shape[1], device=model.device, dtype=model.dtype)
    decode(model, embeds, torch.zeros(1, 1, dtype=torch.long, device=model.device), None)


@torch.inference_mode()
def idle_encode(model: EmbeddingModel) -> None:
    """See VisionLanguageModel.idle_encode."""
    pixels = model.pixels(new_image("RGB", (8, 8)), True, max_megapixels=64)
    model.encode_images(pixels[None].to(model.device))
