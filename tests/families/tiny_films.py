"""Tiny checkpoints of families for films, which take pictures as others do."""

import transformers as tf
from tiny_parts import SIZE, build, clip, template, text, tokenizer


def llava_next_video():
    tokens = tokenizer(image_token="<image>", video_token="<video>")
    pins = [[28, 56], [56, 28], [56, 56]]
    pixels = tf.LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=SIZE, image_grid_pinpoints=pins)
    processor = tf.LlavaNextVideoProcessor(
        tf.LlavaNextVideoVideoProcessor(), pixels, tokens, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template("USER: ", " ", "ASSISTANT:", "<image>\n"),
    )  # fmt: skip
    config = tf.LlavaNextVideoConfig(
        vision_config=clip(), text_config=text(), image_token_index=tokens.image_token_id,
        video_token_index=tokens.video_token_id, image_grid_pinpoints=pins,
    )  # fmt: skip
    return build(tf.LlavaNextVideoForConditionalGeneration, config), processor


def video_llava():
    tokens = tokenizer(image_token="<image>", video_token="<video>")
    pixels = tf.VideoLlavaImageProcessor(size={"shortest_edge": 28}, crop_size=SIZE)
    processor = tf.VideoLlavaProcessor(
        pixels, tf.VideoLlavaVideoProcessor(), tokens, patch_size=14,
        chat_template=template("USER: ", " ", "ASSISTANT:", "<image>\n"),
    )  # fmt: skip
    config = tf.VideoLlavaConfig(
        vision_config=clip(), text_config=text(), image_token_index=tokens.image_token_id,
        video_token_index=tokens.video_token_id,
    )  # fmt: skip
    return build(tf.VideoLlavaForConditionalGeneration, config), processor
