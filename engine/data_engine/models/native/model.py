"""What the native families share: prompts that go in as embeddings, behind a decoder of LLaMA's kind.

Shapes: N image tokens, P prompt tokens, K rows, T tokens, V vocabulary, D width.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import Cache

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.errors import BadRow
from data_engine.models import image_groups
from data_engine.models.base import CacheSizes, Prompt, PromptEnd, Split, TextSide
from data_engine.models.checkpoints.checkpoint import Blueprint
from data_engine.models.device import sent
from data_engine.models.layers import rotary
from data_engine.models.layers.answer_cache import CACHE, PassingLayer, passing
from data_engine.models.layers.head import Head
from data_engine.models.layers.layer_kind import LayerKind, cache_values_per_token, head_width
from data_engine.models.native.decoder import head_weight
from data_engine.models.native.embedded import IMAGE_TOKEN, SplicedPrompt
from data_engine.models.prompt_maker import PromptMaker
from data_engine.models.tokenizer import Tokenizer, control_tokens, load_tokenizer
from data_engine.models.words import ids_of_words
from data_engine.questions import thoughts
from data_engine.questions.conversation import Conversation
from data_engine.questions.thoughts import ReadAnswer


class EmbeddingDecoder(ABC):
    """A decoder of LLaMA's kind that runs prompts, and answers behind them."""

    is_split = False

    def __init__(self, decoder: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.decoder, self.device, self.dtype = decoder, device, dtype
        config, width = decoder.config, head_width(decoder.config)
        self.attention_layers = {layer.self_attn: number for number, layer in enumerate(decoder.layers)}
        self.layers = (LayerKind(config.num_key_value_heads, width, width),) * config.num_hidden_layers
        # Without a recurrent state.
        self.cache_layers = [PassingLayer()] * config.num_hidden_layers

    @abstractmethod
    def embed_tokens(self, token_ids_T: Tensor) -> Tensor:
        """[T, D]"""

    def run_prompt(self, prompt: SplicedPrompt) -> PromptEnd:
        """See VisionLanguageModel.run_prompt."""
        embeds = prompt.embeds(self)
        positions = torch.arange(len(embeds), device=embeds.device)[None]
        hidden = decode(self.decoder, embeds[None], positions, passing(len(self.layers)))
        return PromptEnd(hidden[0, -1], len(embeds), self.cache_layers)

    @property
    def packs_prompts(self) -> bool:
        """See VisionLanguageModel.packs_prompts: not where a rotary table follows the longest prompt."""
        return not self.is_split and not rotary.follow_largest(self.decoder)

    def run_prompts(self, prompts: Sequence[SplicedPrompt], num_rows: int) -> list[PromptEnd]:
        """See VisionLanguageModel.run_prompts."""
        each = [prompt.embeds(self) for prompt in prompts]
        lengths = [len(embeds) for embeds in each]
        rest = num_rows - sum(lengths)
        row = torch.cat([*each, each[0].new_zeros(rest, each[0].shape[1])])
        positions = torch.cat([torch.arange(length, device=row.device) for length in (*lengths, rest)])
        hidden = decode(self.decoder, row[None], positions[None], passing(len(self.layers)))[0]
        # Copies, which do not keep the whole row alive.
        lasts = (hidden[end - 1].clone() for end in itertools.accumulate(lengths))
        return [PromptEnd(last, length, self.cache_layers) for last, length in zip(lasts, lengths, strict=True)]

    def run_answers(self, ids_KT: Tensor, positions_KT: Tensor, cache: Cache) -> Tensor:
        """See VisionLanguageModel.run_answers."""
        return decode(self.decoder, self.embed_tokens(ids_KT), positions_KT, cache)

    def find_layers(self) -> None:  # noqa: B027
        """See VisionLanguageModel.find_layers: they are LLaMA's, as the configuration says."""


def decode(decoder: nn.Module, embeds_BTD: Tensor, positions_BT: Tensor, cache: Cache | None) -> Tensor:
    """Last hidden states [B, T, D] of one pass of the decoder; without a layout in force, attention is causal."""
    return decoder(
        inputs_embeds=embeds_BTD, position_ids=positions_BT, **{CACHE: cache}, use_cache=cache is not None
    ).last_hidden_state


def read_answer(model: PromptMaker, conversation: Conversation, token_ids: list[int]) -> ReadAnswer:
    """See VisionLanguageModel.read_answer: the marks of thoughts are plain text, and no prompt opens one."""
    return thoughts.read(token_ids, model.text, model.text)


class NativeModel(EmbeddingDecoder):
    """One checkpoint of a native family; the protocol is models.base.VisionLanguageModel.

    A family brings its names, its prompts, its tower, and what its folders hold.
    """

    family: ClassVar[str]
    markers: ClassVar[tuple[str, ...]]
    takes_chat_settings, has_plain_path, why_plain, is_settled = False, False, None, True
    answers_in_rows, samples_other_pixels, reads_ahead = False, False, False
    banned_token_ids: tuple[int, ...] = ()
    around_image: tuple[int, ...] = ()
    """ids that stand around an image, and nowhere else"""
    read_answer = read_answer

    def __init__(self, modules: nn.Module, tokenizer: Tokenizer, max_positions: int, image_tokens: int) -> None:
        """`modules` has vision, decoder, and head where the output weights are not those of the embedding."""
        self._modules, self._tokenizer = modules.eval(), tokenizer
        self.vision, self._embedding = modules.vision, modules.decoder.embed_tokens
        self.head = Head(head_weight(modules))
        super().__init__(modules.decoder, self.head.weight.device, self.head.weight.dtype)
        self.num_ids = len(self.head.weight)
        self.eos_token_ids, self.vocabulary = (tokenizer.eos,), tokenizer.vocabulary
        self.max_positions, self.image_tokens = max_positions, image_tokens

    @staticmethod
    @abstractmethod
    def plan(folder: Path) -> tuple[Blueprint, object, Tokenizer]:
        """What a folder holds: its modules and weights, its configuration, its tokenizer. Raises ModelError."""

    @staticmethod
    @abstractmethod
    def text_config(folder: Path) -> PretrainedConfig:
        """The configuration of the decoder. Raises ModelError."""

    @abstractmethod
    def pixels(self, image: Image, crop: bool, max_megapixels: float) -> Tensor:
        """RGB image -> [3, H, W] fp32 on CPU. Raises images.BadImage for one that would get too large."""

    @abstractmethod
    def prompt_ids(self, question: str) -> list[int]:
        """The prompt up to the start of the answer, with one IMAGE_TOKEN."""

    @abstractmethod
    def answer_ids(self, question: str, answer: str) -> list[int]:
        """An answer's ids behind that prompt."""

    @abstractmethod
    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        """Image features in the decoder's space [B, N, D]."""

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        split: Split | None = None,
        chat: ChatSettings = NO_CHAT_SETTINGS,
    ) -> Self:
        """Read a checkpoint folder; raises ModelError naming what is missing, unexpected or contradictory."""
        blueprint, config, tokenizer = cls.plan(folder)
        blueprint.fill(device, dtype, split)
        return cls(blueprint.modules.to(device), config, tokenizer)

    @classmethod
    def check(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> None:
        """Raise ModelError for what `load` would refuse; reads the headers of the weight files alone."""
        cls.plan(folder)[0].matched()

    @classmethod
    def text_side(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> TextSide:
        tokenizer, tokens = load_tokenizer(folder), control_tokens(folder)
        text = lambda ids: tokenizer.decode(ids).strip()  # noqa: E731
        word_ids = lambda words: ids_of_words(tokenizer.encode, text, words)  # noqa: E731
        return TextSide(tokenizer.vocabulary, cls.markers, control_tokens=tokens, text=text, word_ids=word_ids)

    @classmethod
    def cache_sizes(cls, folder: Path) -> CacheSizes:
        """What the cache keeps of a token."""
        return CacheSizes(cache_values_per_token(cls.text_config(folder)))

    @classmethod
    def check_split(cls, folder: Path) -> None:
        """Every checkpoint of these families can be split."""

    def prompt(
        self, conversation: Conversation, images: Sequence[Image], crop: bool, max_megapixels: float
    ) -> SplicedPrompt:
        """Raises BadRow for anything but one question about one image, and what `pixels` raises."""
        [image], question = images if conversation.is_single else [None], single_question(self.family, conversation)
        pixels = self.pixels(image, crop, max_megapixels)
        return SplicedPrompt(self.prompt_ids(question), pixels, self.image_tokens)

    def prompt_without_images(self, conversation: Conversation) -> SplicedPrompt:
        """See VisionLanguageModel.prompt_without_images: the prompt of training but for what stands for the image.

        Raises BadRow for anything but one question about one image.
        """
        image = {IMAGE_TOKEN, *self.around_image}
        ids = [token for token in self.prompt_ids(single_question(self.family, conversation)) if token not in image]
        return SplicedPrompt(ids, None, 0)

    def prompts(
        self, conversations: Sequence[Conversation], images: Sequence[Image], crop: bool, max_megapixels: float
    ) -> list[SplicedPrompt]:
        """See VisionLanguageModel.prompts."""
        first = self.prompt(conversations[0], images, crop, max_megapixels)
        return [replace(first, ids=self.prompt_ids(single_question(self.family, one))) for one in conversations]

    def shared_prompt(
        self, conversations: Sequence[Conversation], images: Sequence[Image], max_megapixels: float
    ) -> tuple[SplicedPrompt, list[list[int]]]:
        """See VisionLanguageModel.shared_prompt. The image is in it, since the same ids stand before it in all prompts;
        at least one id stands behind it.
        """
        prompts = self.prompts(conversations, images, True, max_megapixels)
        length = min(len(one.ids) for one in prompts) - 1
        length = next((at for at in range(length) if len({one.ids[at] for one in prompts}) > 1), length)
        return replace(prompts[0], ids=prompts[0].ids[:length]), [one.ids[length:] for one in prompts]

    def encode_answer(self, conversation: Conversation, answer: str) -> list[int]:
        """See VisionLanguageModel.encode_answer. Raises BadRow for anything but one question about one image."""
        return self.answer_ids(single_question(self.family, conversation), answer)

    def text(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids).strip()

    def word_ids(self, words: Sequence[str]) -> list[int]:
        return ids_of_words(self._tokenizer.encode, self.text, words)

    def embed_tokens(self, token_ids_T: Tensor) -> Tensor:
        return self._embedding(token_ids_T)

    @torch.inference_mode()
    def encoded(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """See VisionLanguageModel.encoded."""

        def pixels(prompt: Prompt) -> Tensor | None:
            shown = isinstance(prompt, SplicedPrompt) and prompt.pixels is not None
            return prompt.pixels[None] if shown else None

        def encode(pixels_BCHW: Tensor) -> Tensor:
            return self.encode_images(sent(pixels_BCHW, self.device))

        for prompt, features in image_groups.encoded(prompts, pixels, encode, self):
            yield prompt if features is None else replace(prompt, features_ND=features[0])

    def plain_logits(self, prompt: SplicedPrompt, ids: list[int]) -> Tensor:
        """See VisionLanguageModel.plain_logits: one causal row, full logits."""
        embeds = prompt.embeds(self)
        row = torch.cat([embeds, self.embed_tokens(torch.tensor(ids, device=embeds.device))])
        hidden = decode(self.decoder, row[None], torch.arange(len(row), device=row.device)[None], None)[0]
        return (hidden[len(embeds) - 1 : -1] @ self.head.weight.T).float()

    def plain_end(self, prompt: SplicedPrompt) -> tuple[Tensor, Tensor]:
        """See VisionLanguageModel.plain_end."""
        embeds = prompt.embeds(self)
        hidden = decode(self.decoder, embeds[None], torch.arange(len(embeds), device=embeds.device)[None], None)[0, -1]
        return hidden, (hidden @ self.head.weight.T).float()

    def whole_modules(self) -> list[tuple[nn.Module, str]]:
        """See VisionLanguageModel.whole_modules."""
        return [(self.decoder, "embed_tokens")]

    @torch.inference_mode()
    def idle_decode(self) -> None:
        """See VisionLanguageModel.idle_decode."""
        embeds = torch.zeros(1, 1, self.head.weight.shape[1], device=self.device, dtype=self.dtype)
        decode(self.decoder, embeds, torch.zeros(1, 1, dtype=torch.long, device=self.device), None)

    @torch.inference_mode()
    def idle_encode(self) -> None:
        """See VisionLanguageModel.idle_encode."""
        pixels = self.pixels(new_image("RGB", (8, 8)), True, max_megapixels=64)
        self.encode_images(pixels[None].to(self.device))


def single_question(family: str, conversation: Conversation) -> str:
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
    raise BadRow(f"the family {family} takes one image and one question, and nothing else; the row has {told}")
