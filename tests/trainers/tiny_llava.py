"""A random LLaVA-1.5 of 0.6 M parameters in the layout of transformers, 5.6 to 5.24, without torchvision."""

from pathlib import Path

import tokenizers
import torch
import transformers

IMAGE_TOKENS = 16
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% elif m['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def save(folder: Path, seed: int = 0) -> Path:
    """Write model and processor; the same weights for the same seed."""
    transformers.logging.set_verbosity_error()
    tokenizer = byte_tokenizer(
        ["<unk>", "<s>", "</s>", "<pad>", "<image>"], bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<pad>", additional_special_tokens=["<image>"],
    )  # fmt: skip
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 128}
    text = {"vocab_size": 320, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=56, patch_size=14, **layers).to_dict(),
        text_config=transformers.LlamaConfig(**text, **layers).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=IMAGE_TOKENS,
    )  # fmt: skip
    torch.manual_seed(seed)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    # Older releases have one class, which needs no torchvision either.
    image_processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    transformers.LlavaProcessor(
        image_processor=image_processor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def byte_tokenizer(special: list[str], **named: object) -> transformers.PreTrainedTokenizerFast:
    """A token a byte, behind the special ones, so that any text comes back as it went in."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: number for number, token in enumerate([*special, *alphabet])}, [])
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(special)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=8192, **named)
