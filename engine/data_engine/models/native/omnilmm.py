"""The OmniLMM family: an EVA-02 tower, a resampler, a Mistral decoder; OmniLMM-12B and RLAIF-V-12B.

Reads the published layout, tower and resampler inside the checkpoint. The prompt is Zephyr's chat template in legacy
LLaMA tokenisation, with the block <im_start> image <im_end> before the question.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor, nn
from transformers import MistralConfig, MistralModel

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.models.base import Description
from data_engine.models.checkpoints.adapter import Adapter
from data_engine.models.checkpoints.checkpoint import Blueprint, Source, headers
from data_engine.models.checkpoints.json_files import ModelError, read_json
from data_engine.models.checkpoints.model_config import check_counts, check_layers, on_meta
from data_engine.models.layers import attention
from data_engine.models.native.clip_pixels import normalised, resized
from data_engine.models.native.decoder import check_vocabulary, decoder_config
from data_engine.models.native.embedded import IMAGE_TOKEN
from data_engine.models.native.eva import Eva, EvaConfig, Resampler, heads_of
from data_engine.models.native.model import NativeModel, single_question
from data_engine.models.prompt_maker import PromptMaker
from data_engine.models.registry import model_types
from data_engine.models.tokenizer import Tokenizer, added_tokens, continuation, load_tokenizer
from data_engine.questions.conversation import Conversation
from data_engine.questions.images import check_megapixels
from data_engine.schemas import without_image_marker

SYSTEM = (
    "You are an artificial intelligence assistant, "
    "which gives helpful, detailed, and polite answers to the human's questions."
)
ANSWER_STARTS = "\n<|assistant|>\n"
TOWER = "model.vision_tower."
RENAMES = {TOWER: "vision.", "model.resampler.": "resampler.", "lm_head.": "head.", "model.": "decoder."}
# Rotary tables, and the biases of keys: they shift all scores of a query equally, which softmax ignores.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|vision_tower\.blocks\.\d+\.attn\.k_bias$")
# Required fields: transformers would silently use its defaults.
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "num_query", "image_size",
)  # fmt: skip
# Width of a published tower -> blocks in the checkpoint: 64 without the last.
PUBLISHED_BLOCKS = {1792: 63}


@dataclass(frozen=True)
class OmniConfig:
    """The configuration of a checkpoint, from config.json and the shapes of the tower's weights."""

    text: MistralConfig
    vision: EvaConfig
    image_size: int
    num_query: int
    max_positions: int
    around_image: tuple[int, int] = (0, 0)
    """ids of <im_start> and <im_end>, once the tokenizer is read"""


class _Modules(nn.Module):
    def __init__(self, config: OmniConfig) -> None:
        super().__init__()
        config.text._attn_implementation = attention.NAME
        width = config.text.hidden_size
        self.vision = Eva(config.vision)
        self.resampler = Resampler(config.num_query, width, config.vision.width)
        self.decoder = MistralModel(config.text)
        if not config.text.tie_word_embeddings:
            self.head = nn.Linear(width, config.text.vocab_size, bias=False)


class OmniLMM(NativeModel):
    """One OmniLMM checkpoint."""

    family = "omnilmm"
    # Trainers tokenise whole rows, parse special tokens from the text, and search for the lines of the roles.
    markers = (
        "<image>", "<|system|>", "<|user|>", "<|assistant|>", "<unk>", "<s>", "</s>", "<im_patch>", "<im_start>",
        "<im_end>", "<box>", "</box>", "<ref>", "</ref>", "<quad>", "</quad>",
    )  # fmt: skip

    def __init__(self, modules: _Modules, config: OmniConfig, tokenizer: Tokenizer) -> None:
        super().__init__(modules, tokenizer, config.max_positions, config.num_query)
        self._config, self.around_image = config, config.around_image

    @staticmethod
    def plan(folder: Path) -> tuple[Blueprint, OmniConfig, Tokenizer]:
        """What loading and its check have in common. Raises ModelError."""
        stored, where = headers(folder), folder / "config.json"
        config = read_config(folder, {name: one.shape for name, one in stored.items()})
        tokenizer = load_tokenizer(folder)
        check_vocabulary(tokenizer, config.text.vocab_size, where)
        config = replace(config, around_image=image_token_ids(folder, config.text.vocab_size))
        check_layers(config.text.num_hidden_layers, len(stored), where)
        modules = on_meta(where, lambda: _Modules(config))
        sources = (Source(folder, stored, _rename),)
        return Blueprint(modules, sources, IGNORED, Adapter.of(folder)), config, tokenizer

    @staticmethod
    def text_config(folder: Path) -> MistralConfig:
        where = folder / "config.json"
        return _mistral_config(read_json(where), where)

    @classmethod
    def prompt_maker(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> PromptMaker:
        raise ModelError(f"{folder} is an OmniLMM, which vLLM does not know: leave --sampler out for it")

    @classmethod
    def prompt_counter(cls, folder: Path) -> Callable[[Conversation], int]:
        """Tokens of a prompt, those of its image included; reads no weights."""
        tokenizer, queries = load_tokenizer(folder), read_json(folder / "config.json").get("num_query", 0)
        question = functools.partial(single_question, cls.family)
        # The number of tokens does not depend on these ids.
        around = (0, 0)
        return lambda conversation: len(prompt_ids(tokenizer, around, question(conversation))) - 1 + queries

    @classmethod
    def describe(cls, folder: Path) -> Description:
        return Description("OmniLMM, attention alone", cls.cache_sizes(folder), _longest(cls.text_config(folder)))

    @staticmethod
    def folders(folder: Path) -> list[Path]:
        """Its own alone, which holds the tower."""
        return [folder]

    def pixels(self, image: Image.Image, crop: bool, max_megapixels: float) -> Tensor:
        """The whole image resized to a square, for sampling and scoring alike; `crop` is ignored."""
        check_megapixels(*image.size, max_megapixels, "source image")
        side = self._config.image_size
        # The image between the two steps of resizing: one that is a single column wide would fill the memory.
        check_megapixels(side, image.height, max_megapixels, "resized image")
        return normalised(resized(image, (side, side)))

    def prompt_ids(self, question: str) -> list[int]:
        return prompt_ids(self._tokenizer, self.around_image, question)

    def answer_ids(self, question: str, answer: str) -> list[int]:
        return [*continuation(self._tokenizer, ANSWER_STARTS, answer), self._tokenizer.eos]

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        # The class token is dropped after the norm.
        features = self.vision(pixels_BCHW.to(self.dtype))[:, 1:]
        patch = self._config.vision.patch_size
        return self._modules.resampler(features, (pixels_BCHW.shape[-2] // patch, pixels_BCHW.shape[-1] // patch))


def prompt_ids(tokenizer: Tokenizer, around_image: tuple[int, int], question: str) -> list[int]:
    """The prompt up to the start of the answer, with one IMAGE_TOKEN between the ids of <im_start> and <im_end>.

    Each text between two special tokens is tokenised separately: each has a dummy space.
    """
    encode, eos, (start, end) = tokenizer.encode, tokenizer.eos, around_image
    return [
        tokenizer.bos, *encode(f"<|system|>\n{SYSTEM}"), eos, *encode("\n<|user|>\n"),
        start, IMAGE_TOKEN, end, *encode(f"\n{without_image_marker(question)}"), eos,
        *encode(ANSWER_STARTS),
    ]  # fmt: skip


def _rename(name: str) -> str:
    theirs = next((prefix for prefix in RENAMES if name.startswith(prefix)), None)
    return name if theirs is None else RENAMES[theirs] + name.removeprefix(theirs)


def image_token_ids(folder: Path, vocab_size: int) -> tuple[int, int]:
    """Ids of <im_start> and <im_end>. Raises ModelError where an image token is missing or beyond vocab_size."""
    added = added_tokens(folder)
    for name in ("<im_patch>", "<im_start>", "<im_end>"):
        if name not in added:
            raise ModelError(f"the tokenizer of {folder} has no {name}: not the tokenizer of an OmniLMM checkpoint")
        if not 0 <= added[name] < vocab_size:
            raise ModelError(f"the tokenizer of {folder} gives {name} the id {added[name]}, vocab_size is {vocab_size}")
    return added["<im_start>"], added["<im_end>"]


def read_config(folder: Path, shapes: dict[str, tuple[int, ...]]) -> OmniConfig:
    """From config.json and the shapes of the tower's weights. Raises ModelError naming what is wrong."""
    where = folder / "config.json"
    raw = read_json(where)
    if not raw.get("mm_vision_tower"):
        raise ModelError(f"{where} has no mm_vision_tower: not a checkpoint that sees images")
    if raw.get("mm_use_im_start_end") is not True:
        raise ModelError(f"{where} has mm_use_im_start_end {raw.get('mm_use_im_start_end')!r}; this family needs true")
    for name in SIZES:
        if type(raw.get(name)) is not int or raw[name] < 1:
            raise ModelError(f"{where} has {name} {raw.get(name)!r}; expected a positive integer")
    if not isinstance(raw.get("rms_norm_eps"), float):
        raise ModelError(f"{where} has rms_norm_eps {raw.get('rms_norm_eps')!r}; expected a number such as 1e-05")
    check_counts(raw, where, SIZES)
    text, vision = _mistral_config(raw, where), tower_config(folder, shapes)
    _check_sizes(raw, where, vision)
    return OmniConfig(text, vision, raw["image_size"], raw["num_query"], _longest(text))


def _check_sizes(raw: dict, where: Path, vision: EvaConfig) -> None:
    if math.isqrt(raw["num_query"]) ** 2 != raw["num_query"]:
        raise ModelError(f"{where} has num_query {raw['num_query']}; the queries form a square, such as 64")
    if raw["image_size"] % vision.patch_size:
        raise ModelError(f"{where} has image_size {raw['image_size']}; the patches are {vision.patch_size} wide")
    if raw["hidden_size"] % 128:
        raise ModelError(f"{where} has hidden_size {raw['hidden_size']}; the resampler's heads are 128 wide")
    if raw.get("mm_hidden_size", vision.width) != vision.width:
        raise ModelError(
            f"{where} has mm_hidden_size {raw['mm_hidden_size']}; the tower's weights are {vision.width} wide"
        )


def _longest(text: MistralConfig) -> int:
    """Attention here has no sliding window, so rows must be short enough that the window would hide no token."""
    return min(text.max_position_embeddings, text.sliding_window or text.max_position_embeddings)


def _mistral_config(raw: dict, where: Path) -> MistralConfig:
    return decoder_config(MistralConfig, raw, where, types=tuple(model_types()))


def tower_config(folder: Path, shapes: dict[str, tuple[int, ...]]) -> EvaConfig:
    """The tower's sizes, by its weights: config.json lacks them. Raises ModelError where weights are missing."""
    needed = [f"{TOWER}{name}" for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")]
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise ModelError(f"{folder} has no whole vision tower, which belongs inside the checkpoint: no {missing[0]}")
    for name, length in zip(needed, (4, 3, 2), strict=True):
        if len(shapes[name]) != length or 0 in shapes[name]:
            raise ModelError(f"weight {name} in {folder} has shape {list(shapes[name])}: not that of an EVA-02 tower")
    (width, _, patch, _), (_, positions, _), (mlp, _) = (shapes[name] for name in needed)
    blocks = 1 + max(int(found[1]) for found in map(re.compile(rf"{TOWER}blocks\.(\d+)\.").match, shapes) if found)
    if PUBLISHED_BLOCKS.get(width, blocks) != blocks:
        raise ModelError(
            f"{folder} has {blocks} blocks of a vision tower {width} wide; expected {PUBLISHED_BLOCKS[width]}"
        )
    return EvaConfig(width, blocks, heads_of(width), mlp, patch, math.isqrt(positions - 1))
