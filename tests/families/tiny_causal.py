"""Tiny checkpoints of families whose text model is plain: causal attention in every layer, one position a token."""

import transformers as tf
from tiny_parts import (
    SIZE,
    TOWER,
    WIDTH,
    build,
    chatml,
    clip,
    ids,
    llava_processor,
    siglip,
    still,
    template,
    text,
    tokenizer,
)


def llava():
    tokens = tokenizer(image_token="<image>")
    processor = llava_processor(tokens, template("USER: ", " ", "ASSISTANT:", "<image>\n"))
    config = tf.LlavaConfig(
        vision_config=clip(), text_config=text(), image_token_id=tokens.image_token_id, vision_feature_layer=-2
    )
    return build(tf.LlavaForConditionalGeneration, config), processor


def llava_next():
    tokens = tokenizer(image_token="<image>")
    pins = [[28, 56], [56, 28], [56, 56]]
    pixels = tf.LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=SIZE, image_grid_pinpoints=pins)
    processor = tf.LlavaNextProcessor(
        pixels, tokens, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template("[INST] ", " [/INST]", "", "<image>\n"),
    )  # fmt: skip
    config = tf.LlavaNextConfig(
        vision_config=clip(), text_config=text("MistralConfig", sliding_window=None),
        image_token_id=tokens.image_token_id, image_grid_pinpoints=pins,
    )  # fmt: skip
    return build(tf.LlavaNextForConditionalGeneration, config), processor


def llava_onevision():
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], image_token="<image>", video_token="<video>")
    pins = [[28, 28], [28, 56], [56, 28], [56, 56]]
    processor = still(tf.LlavaOnevisionProcessor)(
        tf.LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=pins), tokens, num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=chatml("<image>"),
    )  # fmt: skip
    config = tf.LlavaOnevisionConfig(
        vision_config=siglip(), text_config=text("Qwen2Config"), image_token_id=tokens.image_token_id,
        video_token_id=tokens.video_token_id, image_grid_pinpoints=pins, vision_feature_select_strategy="full",
    )  # fmt: skip
    return build(tf.LlavaOnevisionForConditionalGeneration, config), processor


def internvl():
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", video_token="<video>", **named)
    pixels = tf.GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = still(tf.InternVLProcessor)(pixels, tokens, image_seq_length=4, chat_template=chatml("<IMG_CONTEXT>\n"))
    config = tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(**TOWER, image_size=[28, 28], patch_size=[7, 7]),
        text_config=text("Qwen2Config"), downsample_ratio=0.5, image_token_id=tokens.context_image_token_id,
    )  # fmt: skip
    return build(tf.InternVLForConditionalGeneration, config), processor


def deepseek_vl():
    tokens = tokenizer(image_token="<image_placeholder>")
    processor = tf.DeepseekVLProcessor(
        tf.DeepseekVLImageProcessorPil(size=SIZE), tokens, num_image_tokens=4,
        chat_template=template("User: ", "\n\n", "Assistant:", "<image_placeholder>"),
    )  # fmt: skip
    config = tf.DeepseekVLConfig(vision_config=siglip(), text_config=text(), image_token_id=tokens.image_token_id)
    return build(tf.DeepseekVLForConditionalGeneration, config), processor


def janus():
    named = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokens = tokenizer(image_token="<image_placeholder>", **named)
    processor = tf.JanusProcessor(
        tf.JanusImageProcessorPil(size=SIZE, image_size=28), tokens, num_image_tokens=4,
        chat_template=template("User: ", "\n\n", "Assistant:", "<image_placeholder>"),
    )  # fmt: skip
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        "projection_dim": WIDTH, "num_image_tokens": 4,
    }  # fmt: skip
    drawn = {
        "embed_dim": 8, "num_embeddings": 32, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1],
        "num_res_blocks": 1, "num_patches": 4, "projection_dim": WIDTH, "image_token_embed_dim": WIDTH,
    }  # fmt: skip
    config = tf.JanusConfig(
        vision_config=vision, vq_config=drawn, text_config=text(), image_token_id=tokens.image_token_id,
    )  # fmt: skip
    return build(tf.JanusForConditionalGeneration, config), processor


def ovis2():
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokens = tokenizer(["<|im_start|>", "<|im_end|>", *marks, "<IMG_ATOM>"], eos="<|im_end|>", image_token="<image>")
    processor = tf.Ovis2Processor(
        tf.Ovis2ImageProcessorPil(size=SIZE, crop_to_patches=True, max_patches=4), tokens, image_seq_length=4,
        chat_template=chatml("<image>\n"),
    )  # fmt: skip
    vision = TOWER | {"image_size": 28, "patch_size": 14, "vocab_size": 64, "hidden_stride": 1,
                      "num_visual_indicator_tokens": 5}  # fmt: skip
    config = tf.Ovis2Config(
        vision_config=vision, text_config=text("Qwen2Config"), image_token_id=ids(tokens, "<IMG_ATOM>")[0],
        visual_indicator_token_ids=ids(tokens, *marks), vocab_size=400, hidden_size=WIDTH,
    )  # fmt: skip
    return build(tf.Ovis2ForConditionalGeneration, config), processor
