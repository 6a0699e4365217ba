"""The LLaVA-1.5 family: a CLIP tower, a two-layer projector, a LLaMA decoder; llava-1.5-7b and RLAIF-V-7B.

Reads both published layouts, the original one (`mm_vision_tower`, `model.mm_projector`) and transformers'
(LlavaForConditionalGeneration). Prompts and pixels are those of the reference's sampling and scoring paths.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.models.base import Description
from data_engine.models.checkpoints.adapter import Adapter
from data_engine.models.checkpoints.checkpoint import Blueprint, Source, headers
from data_engine.models.checkpoints.json_files import ModelError, read_json
from data_engine.models.checkpoints.model_config import check_layers, on_meta
from data_engine.models.layers import attention
from data_engine.models.native.clip_pixels import CLIP_MEAN, normalised, resized
from data_engine.models.native.decoder import check_vocabulary
from data_engine.models.native.embedded import IMAGE_TOKEN
from data_engine.models.native.llava_config import LlavaConfig, llama_config, read_config
from data_engine.models.native.model import NativeModel, read_answer, single_question
from data_engine.models.prompt_maker import TokenPrompt
from data_engine.models.tokenizer import Tokenizer, continuation, load_tokenizer
from data_engine.questions.conversation import Conversation
from data_engine.questions.images import check_megapixels, resized_size
from data_engine.schemas import without_image_marker

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
PADDING = tuple(int(255 * mean) for mean in CLIP_MEAN)

# Patterns of weight names, in both layouts of a checkpoint -> our prefix; the first match counts.
RENAMES = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?", "vision."),
        (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision."),
        (r"^(?:model\.)?multi_modal_projector\.linear_1\.", "projector.0."),
        (r"^(?:model\.)?multi_modal_projector\.linear_2\.", "projector.2."),
        (r"^model\.mm_projector\.", "projector."),
        (r"^(?:language_model\.)?lm_head\.", "head."),
        (r"^language_model\.model\.", "decoder."),
        (r"^model\.language_model\.", "decoder."),
        (r"^model\.", "decoder."),
    )
]
# In a folder of CLIP itself; CLIPVisionModel of transformers 5 saves without `vision_model.`.
TOWER_NAMES = re.compile(r"^(?:vision_model\.)?(?=embeddings\.|pre_layrnorm\.|encoder\.|post_layernorm\.)")
# Known weights that are not needed: rotary tables, CLIP's text tower, position ids, and the tower's last norm.
IGNORED = re.compile(
    r"rotary_emb\.inv_freq$|^text_model\.|^text_projection\.|^visual_projection\.|^logit_scale$"
    r"|embeddings\.position_ids$|vision\S*\.post_layernorm\."
)


class _Modules(nn.Module):
    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        vision = CLIPVisionConfig(**config.vision.to_dict() | {"num_hidden_layers": config.vision_layers})
        vision._attn_implementation = "sdpa"
        config.text._attn_implementation = attention.NAME
        self.vision = CLIPVisionModel(vision)
        width = config.text.hidden_size
        self.projector = nn.Sequential(nn.Linear(vision.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        self.decoder = LlamaModel(config.text)
        if not config.text.tie_word_embeddings:
            self.head = nn.Linear(width, config.text.vocab_size, bias=False)
        # The pooled output is not used, so its norm is not loaded.
        inner = getattr(self.vision, "vision_model", self.vision)
        inner.post_layernorm = nn.Identity()


class Llava(NativeModel):
    """One LLaVA checkpoint."""

    family = "llava"
    markers = ("<image>", "</s>", " ASSISTANT: ")
    samples_other_pixels = True

    def __init__(self, modules: _Modules, config: LlavaConfig, tokenizer: Tokenizer) -> None:
        super().__init__(modules, tokenizer, config.text.max_position_embeddings, config.image_tokens)
        self._config = config

    @staticmethod
    def plan(folder: Path) -> tuple[Blueprint, LlavaConfig, Tokenizer]:
        """What loading and its check have in common. Raises ModelError."""
        stored, where = headers(folder), folder / "config.json"
        config = read_config(folder, _carries_tower(stored))
        tokenizer = load_tokenizer(folder)
        check_vocabulary(tokenizer, config.text.vocab_size, where)
        tower = {} if config.tower_folder is None else headers(config.tower_folder)
        check_layers(config.text.num_hidden_layers, len(stored), where)
        check_layers(config.vision.num_hidden_layers, len(stored | tower), where)
        modules = on_meta(where, lambda: _Modules(config))

        # The CLIP tower of the installed transformers may have a `vision_model` level.
        inner = "vision.vision_model." if hasattr(modules.vision, "vision_model") else "vision."

        def inside(rename: Callable[[str], str]) -> Callable[[str], str]:
            return lambda name: re.sub(r"^vision\.", inner, rename(name))

        sources = [Source(folder, stored, inside(_rename))]
        if config.tower_folder is not None:
            sources = [
                Source(folder, stored, inside(_rename), ("projector.", "decoder.", "head.")),
                Source(config.tower_folder, tower, inside(lambda name: TOWER_NAMES.sub("vision.", name)), ("vision.",)),
            ]
        unused = rf"{IGNORED.pattern}|vision\S*\.encoder\.layers\.(?:{config.unused_layers})\."
        if config.text.tie_word_embeddings:
            unused += r"|lm_head\.weight$"
        return Blueprint(modules, tuple(sources), re.compile(unused), Adapter.of(folder)), config, tokenizer

    @staticmethod
    def text_config(folder: Path) -> LlamaConfig:
        raw, where = read_json(folder / "config.json"), folder / "config.json"
        return llama_config(raw.get("text_config", raw), where)

    @classmethod
    def prompt_maker(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> "LlavaPrompts":
        return LlavaPrompts(folder)

    @classmethod
    def prompt_counter(cls, folder: Path) -> Callable[[Conversation], int]:
        """Tokens of a prompt, those of its image included; reads no weights."""
        tokenizer, image_tokens = load_tokenizer(folder), read_config(folder, True).image_tokens
        question = functools.partial(single_question, cls.family)
        return lambda conversation: len(prompt_ids(tokenizer, question(conversation))) - 1 + image_tokens

    @classmethod
    def describe(cls, folder: Path) -> Description:
        longest = cls.text_config(folder).max_position_embeddings
        return Description("LLaVA-1.5, attention alone", cls.cache_sizes(folder), longest)

    @staticmethod
    def folders(folder: Path) -> list[Path]:
        """Its own, and that of the CLIP tower where the checkpoint does not hold it."""
        tower = read_config(folder, _carries_tower(headers(folder))).tower_folder
        return [folder] if tower is None else [folder, tower]

    def pixels(self, image: Image.Image, crop: bool, max_megapixels: float) -> Tensor:
        return preprocess(image, self._config.vision.image_size, crop, max_megapixels)

    def prompt_ids(self, question: str) -> list[int]:
        return prompt_ids(self._tokenizer, question)

    def answer_ids(self, question: str, answer: str) -> list[int]:
        if not answer:
            return [self._tokenizer.eos]
        return [*continuation(self._tokenizer, _after_image(question), f" {answer}"), self._tokenizer.eos]

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        features = self.vision(pixel_values=pixels_BCHW.to(self.dtype)).last_hidden_state
        return self._modules.projector(features[:, 1:] if self._config.drop_cls else features)


class LlavaPrompts:
    """Prompts of a checkpoint for another engine; the protocol is models.prompt_maker.PromptMaker."""

    family, is_settled = "llava", True

    def __init__(self, folder: Path) -> None:
        """Raises ModelError for a checkpoint in the original layout, which other engines do not read."""
        raw = read_json(folder / "config.json")
        if not isinstance(raw.get("text_config"), dict):
            raise ModelError(
                f"{folder} is a LLaVA in its original layout, which vLLM does not know: pass the same model in "
                "transformers' layout, such as llava-hf/llava-1.5-7b-hf, or leave --sampler out"
            )
        self.folder, self._config, self._tokenizer = folder, read_config(folder, True), load_tokenizer(folder)
        names = ("image_token_id", "image_token_index")
        # transformers' own default, which it does not write down.
        self._image_token = next((raw[name] for name in names if type(raw.get(name)) is int), 32000)
        self.eos_token_ids, self.banned_token_ids = (self._tokenizer.eos,), (self._image_token,)
        self.max_positions = self._config.text.max_position_embeddings

    def prompt(
        self, conversation: Conversation, images: Sequence[Image.Image], crop: bool, max_megapixels: float
    ) -> TokenPrompt:
        [image], question = images if conversation.is_single else [None], single_question(self.family, conversation)
        ids = prompt_ids(self._tokenizer, question)
        at, count = ids.index(IMAGE_TOKEN), self._config.image_tokens
        whole = [*ids[:at], *[self._image_token] * count, *ids[at + 1 :]]
        shown = square(image, self._config.vision.image_size, crop, max_megapixels)
        return TokenPrompt([*ids[:at], self._image_token, *ids[at + 1 :]], [shown], whole)

    read_answer = read_answer

    def text(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids).strip()


def _after_image(question: str) -> str:
    """The prompt from the image to the start of the answer. A literal `<image>` in the question is deleted."""
    return f"\n{without_image_marker(question)} ASSISTANT:"


def prompt_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """The prompt up to the start of the answer, with one IMAGE_TOKEN.

    As in the reference, the texts before and after the image are tokenised separately: each has a dummy space.
    """
    before = tokenizer.encode(f"{SYSTEM} USER: ")
    return [tokenizer.bos, *before, IMAGE_TOKEN, *tokenizer.encode(_after_image(question))]


def preprocess(image: Image.Image, size: int, crop: bool, max_megapixels: float) -> Tensor:
    """CLIP's preprocessing of an RGB image, [3, size, size] fp32: (x / 255 - mean) / std of `square`."""
    return normalised(square(image, size, crop, max_megapixels))


def square(image: Image.Image, size: int, crop: bool, max_megapixels: float) -> Image.Image:
    """The part of an RGB image that the tower sees, size x size.

    With `crop`, the short edge is resized and the centre cut out, as the reference's scoring and its trainer do; else
    the image is first padded to a square, as its sampling does. Bicubic on 8 bits.
    Raises images.BadImage where a padded or resized image would exceed max_megapixels.
    """
    side, target = max(image.size), resized_size(*image.size, size)
    # Both ways are checked in either stage, so that no answer is sampled that cannot be scored.
    check_megapixels(side, side, max_megapixels, "padded image")
    check_megapixels(*target, max_megapixels, "resized image")
    if not crop:
        padded = Image.new("RGB", (side, side), PADDING)
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image, target = padded, (size, size)
    image = resized(image, target)
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    return image.crop((left, top, left + size, top + size))


def _carries_tower(stored: Iterable[str]) -> bool:
    """Whether the checkpoint holds the weights of its CLIP tower."""
    return any(_rename(name).startswith("vision.") for name in stored)


def _rename(name: str) -> str:
    for pattern, ours in RENAMES:
        renamed, count = pattern.subn(ours, name)
        if count:
            return renamed
    return name
