"""The built-in models of `data-engine bench`: random weights of a known shape, as a checkpoint that transformers reads.

In: the name of a shape, the size of its vocabulary. Out: a folder with weights, tokenizer and, for Qwen2.5-VL, chat
template and processor.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
)

# LLaVA: (decoder, tower) as (width, width of the MLP, layers, heads). Both see 336 px as 576 image tokens.
_LLAVA = {
    "small": ((512, 1376, 8, 8), (256, 1024, 4, 4)),
    "llava-1.5-7b": ((4096, 11008, 32, 32), (1024, 4096, 24, 16)),
}
_SIZE_NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
QWEN, QWEN_7B = "qwen2.5-vl", "qwen2.5-vl-7b"
SHAPES = (*_LLAVA, QWEN, QWEN_7B)
_AS_LETTERS = str.maketrans("0123456789", "abcdefghij")
PHOTO = (640, 480)
# 48 x 48 patches, of which four are an image token: as many of them as LLaVA has.
_QWEN_PHOTO = (672, 672)
_QWEN_TEXT = {
    "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
}  # fmt: skip
# With four times LLaVA's patches, about as much work as the tower of "small".
_QWEN_TOWER = {
    "depth": 4, "hidden_size": 128, "intermediate_size": 344, "num_heads": 2, "out_hidden_size": 512, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [3],
}  # fmt: skip
# Qwen2.5-VL-7B as published: what differs from the small one.
_QWEN_7B_TEXT = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
}  # fmt: skip
_QWEN_7B_TOWER = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
# As published checkpoints have them, but for the limits of a picture's size, which these pictures do not reach.
_QWEN_PIXELS = {
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", "patch_size": 14,
    "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12845056,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
_QWEN_TOKENS = {
    "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
}  # fmt: skip
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def photo_size(shape: str) -> tuple[int, int]:
    """Width and height of the pictures that a built-in model is shown."""
    return _QWEN_PHOTO if shape in (QWEN, QWEN_7B) else PHOTO


def write_checkpoint(
    folder: Path, vocab: int, shape: str = "small", device: str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Random weights of a built-in shape in transformers' layout, with what makes its prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    if shape in (QWEN, QWEN_7B):
        tokens = _write_qwen_processor(folder, vocab)
        config = qwen_config(vocab, tokens, shape)
    else:
        _write_words(folder, vocab)
        config = llava_config(shape, vocab)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    if shape in (QWEN, QWEN_7B):
        # Answers are of words, as _word has them: among thousands of random logits, one of 0 is never drawn.
        model.lm_head.weight.data[: len(ByteLevel.alphabet())] = 0
    # accelerate imports DeepSpeed here, whose log goes to standard output, where the bench's table or JSON stands.
    with contextlib.redirect_stdout(sys.stderr):
        model.save_pretrained(folder)


def llava_config(shape: str, vocab: int) -> LlavaConfig:
    """A LLaVA of that shape, the last id of its vocabulary for the image."""
    text, vision = (dict(zip(_SIZE_NAMES, sizes, strict=True)) for sizes in _LLAVA[shape])
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=336, patch_size=14, projection_dim=vision["hidden_size"]),
        text_config=LlamaConfig(**text, vocab_size=vocab, max_position_embeddings=4096),
        image_token_id=vocab - 1,
        tie_word_embeddings=False,
    )


def _word(number: int) -> str:
    """Of letters alone: to count others in an answer takes NLTK, which a machine for the bench need not have."""
    return f"w{number}".translate(_AS_LETTERS)


def _write_words(folder: Path, vocab: int) -> None:
    """LLaVA's tokenizer: one word is one token."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {_word(number): number for number in range(3, vocab - 1)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def qwen_config(vocab: int, tokens: PreTrainedTokenizerFast, shape: str = QWEN) -> PreTrainedConfig:
    """A Qwen2.5-VL of that shape, with the ids of these tokens."""
    larger_text, larger_tower = (_QWEN_7B_TEXT, _QWEN_7B_TOWER) if shape == QWEN_7B else ({}, {})
    special = tokens.convert_tokens_to_ids
    text = _QWEN_TEXT | larger_text | {
        "vocab_size": vocab, "tie_word_embeddings": False, "bos_token_id": tokens.pad_token_id,
        "eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id,
    }  # fmt: skip
    return Qwen2_5_VLConfig(
        vision_config=_QWEN_TOWER | larger_tower, text_config=text, image_token_id=special("<|image_pad|>"),
        video_token_id=special("<|video_pad|>"), vision_start_token_id=special("<|vision_start|>"),
        vision_end_token_id=special("<|vision_end|>"), tie_word_embeddings=False,
    )  # fmt: skip


def _write_qwen_processor(folder: Path, vocab: int) -> PreTrainedTokenizerFast:
    """Its tokenizer: a prompt's bytes are tokens; the other ids, which answers are drawn from, are words."""
    specials = ["<|im_start|>", *_QWEN_TOKENS.values()]
    letters = sorted(ByteLevel.alphabet())
    words = [_word(number) for number in range(len(letters), vocab - len(specials))]
    raw = Tokenizer(BPE(vocab={text: number for number, text in enumerate([*letters, *words])}, merges=[]))
    raw.pre_tokenizer, raw.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(specials)
    extra = {name: text for name, text in _QWEN_TOKENS.items() if name not in ("eos_token", "pad_token")}
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=_QWEN_TOKENS["eos_token"], pad_token=_QWEN_TOKENS["pad_token"],
        extra_special_tokens=extra,
    )  # fmt: skip
    tokens.chat_template = _QWEN_TEMPLATE
    tokens.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_QWEN_PIXELS, indent=1) + "\n")
    return tokens
