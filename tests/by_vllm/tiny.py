"""Two tiny random checkpoints that vLLM and the engine both read, with the files that published ones have.

vLLM's attention on CPUs wants heads of 32 or more, and its CLIP names of weights as published checkpoints have them.
"""

import json
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

TEXT = {
    "vocab_size": 320, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": None,
}  # fmt: skip
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
LLAVA_CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {% else %}ASSISTANT:{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llava(folder: Path, seed: int = 0) -> Path:
    """LLaVA-1.5 in the layout of transformers: pictures of 56 pixels, 16 tokens each."""
    tokens = _tokenizer([*SPECIAL, "<image>"], eos_token="</s>", extra_special_tokens={"image_token": "<image>"})
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**TOWER, image_size=56, patch_size=14, projection_dim=32),
        text_config=tf.LlamaConfig(**TEXT), image_token_index=4, image_seq_length=16, vision_feature_layer=-2,
    )  # fmt: skip
    _save(tf.LlavaForConditionalGeneration(config), folder, seed)
    path = folder / "model.safetensors"
    published = {
        name.replace("vision_tower.", "vision_tower.vision_model.") if "vision_model" not in name else name: value
        for name, value in load_file(path).items()
    }
    save_file(published, path, {"format": "pt"})
    pixels = tf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    tf.LlavaProcessor(
        pixels, tokens, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def qwen(folder: Path, seed: int = 0) -> Path:
    """Qwen2.5-VL: M-RoPE, pictures of any size, at most 64 tokens each."""
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
             "vision_end_token": "<|vision_end|>"}  # fmt: skip
    special = [*SPECIAL, "<|im_start|>", "<|im_end|>", *named.values()]
    tokens = _tokenizer(special, eos_token="<|im_end|>", extra_special_tokens=named)
    ids = {f"{name}_id": tokens.convert_tokens_to_ids(token) for name, token in named.items()}
    tower = {"depth": 2, "num_heads": 2, "hidden_size": 64, "out_hidden_size": TEXT["hidden_size"], "patch_size": 14,
             "intermediate_size": 96, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
             "fullatt_block_indexes": [1]}  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0}
    text = {**TEXT, "eos_token_id": tokens.eos_token_id, "rope_parameters": rope}
    config = tf.Qwen2_5_VLConfig(vision_config=tower, text_config=text, tie_word_embeddings=False, **ids)
    _save(tf.Qwen2_5_VLForConditionalGeneration(config), folder, seed)
    pixels = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 64, "patch_size": 14, "merge_size": 2,
              "temporal_patch_size": 2, "processor_class": "Qwen2_5_VLProcessor"}  # fmt: skip
    # As in the published checkpoint, which has one file for both of them.
    (folder / "preprocessor_config.json").write_text(
        json.dumps(pixels | {"image_processor_type": "Qwen2VLImageProcessor"})
    )
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps(pixels | {"video_processor_type": "Qwen2VLVideoProcessor"})
    )
    tokens.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(QWEN_CHAT)
    return folder


def _save(model: nn.Module, folder: Path, seed: int) -> None:
    """With weights large enough that the picture and the places of tokens move the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            std = 0.5 if "embed" in name else 1.2 / weight[0].numel() ** 0.5
            nn.init.normal_(weight, std=std, generator=generator)
    model.generation_config = tf.GenerationConfig()
    model.save_pretrained(folder)


def _tokenizer(special: list[str], **named: object) -> tf.PreTrainedTokenizerFast:
    """A token a byte, behind the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: number for number, token in enumerate([*special, *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", unk_token="<unk>", pad_token="<pad>", **named
    )
