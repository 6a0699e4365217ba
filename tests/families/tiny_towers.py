"""Tiny checkpoints of families whose tower or resampler is peculiar, before a text model with causal attention."""

import transformers as tf
from tiny_parts import TOWER, WIDTH, build, template, text, tokenizer


def idefics2():
    named = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}
    tokens = tokenizer(["<end_of_utterance>"], **named)
    processor = tf.Idefics2Processor(
        tf.Idefics2ImageProcessorPil(size={"shortest_edge": 28, "longest_edge": 70}, do_image_splitting=True), tokens,
        image_seq_len=4, chat_template=template("User:", "<end_of_utterance>\n", "Assistant:", "<image>"),
    )  # fmt: skip
    perceiver = {
        "hidden_size": WIDTH, "resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 4,
        "resampler_head_dim": 16, "num_key_value_heads": 2,
    }  # fmt: skip
    config = tf.Idefics2Config(
        vision_config=tf.Idefics2VisionConfig(**TOWER, image_size=70, patch_size=7), perceiver_config=perceiver,
        text_config=text("MistralConfig", sliding_window=None), image_token_id=tokens.image_token_id,
    )  # fmt: skip
    return build(tf.Idefics2ForConditionalGeneration, config), processor
