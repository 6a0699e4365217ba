"""Tiny checkpoints of Inkling's two models: a bias by distance and short convolutions in each layer, and few logits."""

import transformers as tf
from tiny_parts import TOWER, VOCABULARY, WIDTH, build, template, tokenizer
from tiny_parts import text as text_of
from tiny_windows import WINDOW
from torch import nn

# Rows of the head that stand for tokens; models leave out the logits of the others.
REAL = VOCABULARY - 10
IMAGE, SOUND = "<|unused_200054|>", "<|unused_200053|>"
BEGINS = {"image": "<|content_image|>", "audio": "<|content_audio_input|>"}
MIXED = {
    "layer_types": ["hybrid", "hybrid_sliding", "hybrid"], "sliding_window_size": WINDOW, "d_rel": 8,
    "rel_extent": 32, "log_scaling_n_floor": 32, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 1,
    "swa_head_dim": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "unpadded_vocab_size": REAL,
}  # fmt: skip


def _tokens():
    turns = ["<|message_user|>", "<|message_model|>", "<|content_text|>", "<|end_message|>"]
    return tokenizer([*turns, *BEGINS.values(), IMAGE, SOUND], eos="<|content_model_end_sampling|>"), template(
        "<|message_user|>", "<|end_message|>", "<|message_model|>", BEGINS["image"] + IMAGE,
        end_of_answer="<|content_model_end_sampling|>",
    )  # fmt: skip


def _build(kind, config):
    model = build(kind, config)
    for name, weight in model.named_parameters():
        # Zero or nearly so in a new model.
        if name.endswith(("rel_logits_proj.proj", "query")):
            nn.init.normal_(weight, std=0.1)
        elif "lambda" in name:
            nn.init.constant_(weight, 0.7)
    return model


def inkling_mm_model():
    tokens, chat_template = _tokens()
    processor = tf.InklingProcessor(
        tf.InklingFeatureExtractor(), tf.InklingImageProcessor(size={"height": 4, "width": 4}, rescale_image_frac=0.2),
        tokens, chat_template=chat_template,
    )  # fmt: skip
    image, sound, *begin = tokens.convert_tokens_to_ids([IMAGE, SOUND, *BEGINS.values()])
    config = tf.InklingConfig(
        vision_config={"patch_size": 4, "num_hidden_layers": 4}, audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
        text_config=text_of("InklingTextConfig", mlp_layer_types=["dense", "sparse", "sparse"],
                            logits_mup_width_multiplier=2.0, **MIXED).to_dict(),
        image_token_id=image, audio_token_id=sound, image_bos_token_id=begin[0], audio_bos_token_id=begin[1],
    )  # fmt: skip
    return _build(tf.InklingForConditionalGeneration, config), processor


def inkling2():
    tokens, chat_template = _tokens()
    processor = tf.Inkling2Processor(
        tf.Inkling2ImageProcessor(size={"height": 20, "width": 20}), tokens, chat_template=chat_template
    )
    vision = TOWER | {"patch_size": 10, "posemb_grid_size": 4, "projection_hidden_dim": 48, "text_hidden_size": WIDTH}
    config = tf.Inkling2Config(
        vision_config=vision, image_token_id=tokens.convert_tokens_to_ids(IMAGE),
        text_config=text_of("Inkling2TextConfig", n_layers_per_attn_res_block=2, **MIXED).to_dict(),
    )  # fmt: skip
    return _build(tf.Inkling2ForConditionalGeneration, config), processor
