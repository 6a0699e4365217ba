"""Folders with a configuration and a real processor, and no weights: what the text side of a model is read from."""

from collections.abc import Callable
from pathlib import Path

import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SIZE = {"height": 28, "width": 28}
CLIP = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=28)


def bytes_tokenizer(specials=(), eos="</s>", bos_first=False, plain=(), merges=(), **named) -> PreTrainedTokenizerFast:
    """One id a byte, 0 to 255, and added tokens behind them; `bos_first` puts <s> before each text, as LLaMA's does."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    raw = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=list(merges)))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return _fast(raw, specials, eos, bos_first, plain, named)


def space_first_tokenizer(**named) -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: a space before a text, whole words, and letters where there is no word."""
    words = [
        "▁Two",
        "Two",
        "▁cats",
        "cats",
        "▁Yes",
        "Yes",
        "▁",
        *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    ]
    words += [*"0123456789.,:;!?<>|/_[]()'\"-\n"]
    raw = Tokenizer(
        models.Unigram([("<unk>", 0.0), *((word, -len(words) / len(word) ** 2) for word in words)], 0, False)
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return _fast(raw, (), "</s>", True, (), named)


def _fast(raw, specials, eos, bos_first, plain, named) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token=eos, pad_token="<pad>", extra_special_tokens=dict(named)
    )
    made.add_special_tokens({"additional_special_tokens": list(specials)}, replace_extra_special_tokens=False)
    made.add_tokens(list(plain))
    if bos_first:
        start = made.convert_tokens_to_ids("<s>")
        raw = made.backend_tokenizer
        raw.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", start)])
    return made


def template(user: str, end: str, assistant: str, image: str, bos="", close=None, system="<|sys|>") -> str:
    """User turn, image, text, assistant turn; without `system` the template refuses such a message."""
    other = f"{{% elif m.role == 'system' %}}{system}" if system else ""
    refuse = (
        "" if system else "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    return (
        f"{bos}{{% for m in messages %}}{refuse}{{% if m.role == 'user' %}}{user}{other}{{% else %}}{assistant}"
        "{% endif %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
        f"{{% if c.type == 'image' %}}{image}{{% else %}}{{{{ c.text }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
        f"{{% if m.role == 'assistant' %}}{end if close is None else close}{{% else %}}{end}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


def chatml(image: str) -> str:
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
        f"{{% if c.type == 'image' %}}{image}{{% else %}}{{{{ c.text }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


# As the published LLaVA 1.5 has it: images first, lists alone, no token at the end of an answer.
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def text_config(kind="LlamaConfig", **more):
    return getattr(tf, kind)(
        **{"vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 16,
           "num_attention_heads": 4, "num_key_value_heads": 2} | more
    )  # fmt: skip


def still(kind):
    """Without its video processor, as a folder of pictures alone may be saved."""
    wanted = [name for name in kind.get_attributes() if "video" not in name]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: wanted)})


def llava(tok=None):
    tok = tok or bytes_tokenizer(bos_first=True, image_token="<image>")
    pixels = tf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SIZE)
    proc = tf.LlavaProcessor(
        pixels, tok, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA,
    )  # fmt: skip
    vision = tf.CLIPVisionConfig(**CLIP, patch_size=14)
    return tf.LlavaConfig(vision_config=vision, text_config=text_config(), image_token_id=tok.image_token_id), proc


def llava_onevision():
    tok = bytes_tokenizer(["<|im_start|>", "<|im_end|>"], "<|im_end|>", image_token="<image>", video_token="<video>")
    pins = [[28, 28], [28, 56], [56, 28], [56, 56]]
    proc = still(tf.LlavaOnevisionProcessor)(
        tf.LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=pins), tok, num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=chatml("<image>"),
    )  # fmt: skip
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**CLIP, patch_size=14), text_config=text_config("Qwen2Config"),
        image_token_id=tok.image_token_id, video_token_id=tok.video_token_id, image_grid_pinpoints=pins,
    )  # fmt: skip
    return config, proc


QWEN = dict(image_token="<|image_pad|>", video_token="<|video_pad|>", vision_start_token="<|vision_start|>",
            vision_end_token="<|vision_end|>")  # fmt: skip


def _qwen(config, patch, processor, kind, tok=None):
    tok = tok or bytes_tokenizer(["<|im_start|>", "<|im_end|>"], "<|im_end|>", plain=["<think>", "</think>"], **QWEN)
    pixels = tf.Qwen2VLImageProcessorPil(
        min_pixels=28 * 28, max_pixels=28 * 28 * 64, patch_size=patch, merge_size=2, temporal_patch_size=2
    )
    proc = still(processor)(pixels, tok, chat_template=chatml("<|vision_start|><|image_pad|><|vision_end|>"))
    start, end = tok.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    return config(
        image_token_id=tok.image_token_id, video_token_id=tok.video_token_id, vision_start_token_id=start,
        vision_end_token_id=end, text_config=text_config(kind, rope_parameters=rope).to_dict(),
    ), proc  # fmt: skip


def qwen2_5_vl(tok=None):
    return _qwen(tf.Qwen2_5_VLConfig, 14, tf.Qwen2_5_VLProcessor, "Qwen2_5_VLTextConfig", tok)


def qwen3_vl():
    return _qwen(tf.Qwen3VLConfig, 16, tf.Qwen3VLProcessor, "Qwen3VLTextConfig")


def internvl():
    tok = bytes_tokenizer(
        ["<|im_start|>", "<|im_end|>"], "<|im_end|>", start_image_token="<img>", end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    pixels = tf.GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=4)
    proc = still(tf.InternVLProcessor)(pixels, tok, image_seq_length=4, chat_template=chatml("<IMG_CONTEXT>\n"))
    config = tf.InternVLConfig(text_config=text_config("Qwen2Config"), image_token_id=tok.context_image_token_id)
    return config, proc


def gemma3():
    tok = bytes_tokenizer(["<start_of_turn>", "<end_of_turn>"], image_token="<image_soft_token>",
                          boi_token="<start_of_image>", eoi_token="<end_of_image>", plain=["\n\n"])  # fmt: skip
    start = "<start_of_turn>{}\n".format
    turns = template(
        start("user"), "<end_of_turn>\n", start("model"), "<start_of_image>", "<s>", system=start("system")
    )
    proc = tf.Gemma3Processor(tf.Gemma3ImageProcessorPil(size=SIZE), tok, image_seq_length=4, chat_template=turns)
    config = tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(**CLIP, patch_size=7), mm_tokens_per_image=4,
        image_token_index=tok.image_token_id, boi_token_index=tok.boi_token_id, eoi_token_index=tok.eoi_token_id,
        text_config=text_config("Gemma3TextConfig"),
    )  # fmt: skip
    return config, proc


def paligemma():
    tok = bytes_tokenizer(image_token="<image>")
    pixels = tf.SiglipImageProcessorPil(size=SIZE)
    pixels.image_seq_length = 4
    proc = tf.PaliGemmaProcessor(pixels, tok, chat_template=template("", "\n", "", "<image>", system=None))
    config = tf.PaliGemmaConfig(
        vision_config=tf.SiglipVisionConfig(**CLIP, patch_size=14), image_token_index=tok.image_token_id,
        projection_dim=64, text_config=text_config("GemmaConfig"),
    )  # fmt: skip
    return config, proc


def idefics3():
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tok = bytes_tokenizer(["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *rows],
                          image_token="<image>")  # fmt: skip
    pixels = tf.Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    turns = template("User:", "<end_of_utterance>\n", "Assistant:", "<image>", system="System:")
    proc = tf.Idefics3Processor(pixels, tok, image_seq_len=4, chat_template=turns)
    config = tf.Idefics3Config(
        vision_config=dict(**CLIP, patch_size=7), text_config=text_config(), scale_factor=2,
        image_token_id=tok.image_token_id,
    )  # fmt: skip
    return config, proc


def mllama():
    tok = bytes_tokenizer(
        ["<|python_tag|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], image_token="<|image|>"
    )
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    turns = template(header("user"), "<|eot_id|>", header("assistant"), "<|image|>", bos="<s>", system=header("system"))
    proc = tf.MllamaProcessor(tf.MllamaImageProcessorPil(size=SIZE, max_image_tiles=4), tok, chat_template=turns)
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_global_layers=1, attention_heads=2,
                  image_size=28, patch_size=14, max_num_tiles=4, intermediate_layers_indices=[0],
                  supported_aspect_ratios=[[1, 1], [1, 2], [2, 1], [2, 2]])  # fmt: skip
    config = tf.MllamaConfig(
        vision_config=vision, text_config=text_config("MllamaTextConfig", cross_attention_layers=[0]).to_dict(),
        image_token_index=tok.image_token_id,
    )  # fmt: skip
    return config, proc


FAMILIES: dict[str, Callable] = {
    made.__name__: made
    for made in (llava, llava_onevision, qwen2_5_vl, qwen3_vl, internvl, gemma3, paligemma, idefics3, mllama)
    # To transformers 5.17, Idefics 3 needs torchvision for Pillow's image processor too.
    if made is not idefics3 or not getattr(tf.Idefics3ImageProcessorPil, "is_dummy", False)
}


def saved(made: tuple, folder: Path, ends: list[int] | int | None = None) -> Path:
    """A configuration and a processor in a folder; `ends` go into generation_config.json."""
    config, processor = made
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    if ends is not None:
        (folder / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
    return folder
