"""More tiny checkpoints of families with multimodal RoPE, each with a layout, a tower or experts of its own."""

from pathlib import Path

import matplotlib
import transformers as tf
from tiny_mrope import EXPERTS, ROPE, TOWER_3
from tiny_parts import WIDTH, build, chatml, ids, template, text, tokenizer

TOWER = {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "patch_size": 14}


def ernie4_5_vl_moe():
    named = {f"{what}_{part}token": mark for what, name in (("image", "IMAGE"), ("video", "VIDEO")) for part, mark in (
        ("", f"<|{what}@placeholder|>"), ("start_", f"<|{name}_START|>"), ("end_", f"<|{name}_END|>"),
    )}  # fmt: skip
    tokens = tokenizer(["<think>", "</think>"], **named)
    # Its processor is saved with the font that it writes times into films with.
    font = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
    processor = tf.Ernie4_5_VLMoeProcessor(
        tf.Ernie4_5_VLMoeImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}), tokens,
        tf.Ernie4_5_VLMoeVideoProcessor(font=font),
        chat_template=template(
            "User: ", "\n", "Assistant: ", "<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>", bos="<s>",
            end_of_answer="</s>",
        ),
    )  # fmt: skip
    experts = {"moe_intermediate_size": [32, 16], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
    rope = ROPE | {"mrope_section": [3, 3, 2]}
    config = tf.Ernie4_5_VLMoeConfig(
        vision_config=TOWER, text_config=text("Ernie4_5_VLMoeTextConfig", rope_parameters=rope, **experts).to_dict(),
        **{name.replace("_token", "_token_id"): tokens.convert_tokens_to_ids(mark) for name, mark in named.items()},
    )  # fmt: skip
    return build(tf.Ernie4_5_VLMoeForConditionalGeneration, config), processor


def hunyuan_vl():
    named = {f"image_{part}token": f"<｜hy_place▁holder▁no▁{number}｜>"
             for part, number in (("start_", 100), ("", 102), ("end_", 101))}  # fmt: skip
    user, bot = (f"<｜hy_{role}｜>" for role in ("User", "Assistant"))
    tokens = tokenizer([user, bot], **named)
    processor = tf.HunYuanVLProcessor(
        tf.HunYuanVLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}, patch_size=14),
        tokens, chat_template=template("", user, "", "".join(named.values()), bos="<s>", end_of_answer=bot),
    )  # fmt: skip
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
             "patch_size": 14, "max_image_size": 112, "out_hidden_size": WIDTH}  # fmt: skip
    # As published: a table that is called dynamic, and whose alpha makes it one for all lengths.
    rope = ROPE | {"rope_type": "xdrope", "alpha": 1000.0, "factor": 1.0, "mrope_section": [2, 2, 2, 2]}
    config = tf.HunYuanVLConfig(
        vision_config=tower, text_config=text("HunYuanVLTextConfig", rope_parameters=rope).to_dict(),
        image_token_id=tokens.image_token_id, im_start_id=tokens.image_start_token_id,
        im_end_id=tokens.image_end_token_id, im_newline_id=399,
    )  # fmt: skip
    return build(tf.HunYuanVLForConditionalGeneration, config), processor


def qwen2_5_omni_thinker():
    """The part of Qwen 2.5 Omni that reads and writes; one of its conversations has pictures, no sound."""
    named = {f"{name}_token": f"<|{text}|>" for name, text in (
        ("image", "IMAGE"), ("audio", "AUDIO"), ("video", "VIDEO"), ("vision_bos", "vision_bos"),
        ("vision_eos", "vision_eos"), ("audio_bos", "audio_bos"), ("audio_eos", "audio_eos"),
    )}  # fmt: skip
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", **named)
    processor = tf.Qwen2_5OmniProcessor(
        tf.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 64, patch_size=14, merge_size=2),
        tf.Qwen2VLVideoProcessor(), tf.WhisperFeatureExtractor(), tokens,
        chat_template=chatml("<|vision_bos|><|IMAGE|><|vision_eos|>"),
    )  # fmt: skip
    vision = TOWER | {"out_hidden_size": WIDTH, "window_size": 56, "fullatt_block_indexes": [1]}
    audio = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48,
             "max_source_positions": 16, "n_window": 4, "output_dim": WIDTH}  # fmt: skip
    marks = ids(tokens, "<|audio_bos|>", "<|audio_eos|>", "<|vision_bos|>", "<|vision_eos|>")
    bounds = (f"{what}_{side}_token_id" for what in ("audio", "vision") for side in ("start", "end"))
    config = tf.Qwen2_5OmniThinkerConfig(
        vision_config=vision, audio_config=audio,
        text_config=text("Qwen2_5OmniTextConfig", rope_parameters=ROPE).to_dict(),
        image_token_index=tokens.image_token_id, audio_token_index=tokens.audio_token_id,
        video_token_index=tokens.video_token_id, **dict(zip(bounds, marks, strict=True)),
    )  # fmt: skip
    return build(tf.Qwen2_5OmniThinkerForConditionalGeneration, config), processor


def qwen3_omni_moe_thinker():
    """The same of Qwen 3 Omni."""
    named = {f"{name}_token": f"<|{text}|>" for name, text in (
        ("image", "image_pad"), ("audio", "audio_pad"), ("video", "video_pad"), ("vision_bos", "vision_start"),
        ("vision_eos", "vision_end"), ("audio_bos", "audio_start"), ("audio_eos", "audio_end"),
    )}  # fmt: skip
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", **named)
    processor = tf.Qwen3OmniMoeProcessor(
        tf.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 64, patch_size=16, merge_size=2),
        tf.Qwen2VLVideoProcessor(), tf.WhisperFeatureExtractor(), tokens,
        chat_template=chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    audio = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48,
             "max_source_positions": 16, "n_window": 4, "n_window_infer": 8, "downsample_hidden_size": 8,
             "output_dim": WIDTH}  # fmt: skip
    rope = ROPE | {"mrope_interleaved": True}
    config = tf.Qwen3OmniMoeThinkerConfig(
        vision_config=TOWER_3, audio_config=audio,
        text_config=text("Qwen3OmniMoeTextConfig", rope_parameters=rope, **EXPERTS).to_dict(),
        image_token_id=tokens.image_token_id, audio_token_id=tokens.audio_token_id,
        video_token_id=tokens.video_token_id, audio_start_token_id=tokens.audio_bos_token_id,
        vision_start_token_id=tokens.vision_bos_token_id,
    )  # fmt: skip
    return build(tf.Qwen3OmniMoeThinkerForConditionalGeneration, config), processor
