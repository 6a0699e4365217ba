"""Tiny checkpoints of the Muse models: windows, layers without RoPE, gates behind attention."""

import transformers as tf
from tiny_parts import TOWER, WIDTH, build, ids, template, text, tokenizer
from tiny_windows import SLIDING

# As published, layers that see all tokens turn none.
TEXT = SLIDING | {"layer_rope_theta": [10000.0, 0, 10000.0], "output_multiplier": 0.5}
# Windows of 3 x 3 patches in a layer of the tower.
VISION = TOWER | {"pos_emb_height": 3, "pos_emb_width": 3, "max_position_embeddings": 9,
                  "layer_types": ["window_attention", "full_attention"]}  # fmt: skip


def _tokens(**named):
    return tokenizer(
        ["<|patch|>", "<|video|>", "<|image_start|>", "<|image_end|>", "<|vid_start|>", "<|vid_end|>",
         "<|vid_frame_separator|>", "<|header_start|>", "<|header_end|>", "<|eot|>"], **named,
    )  # fmt: skip


def _muse(kind, tokens, text_config, *parts, **more):
    """`kind`: the prefix of the classes' names. `parts` of the processor and `more` of the configuration, beside those
    of text and pictures.
    """
    user, bot = (f"<|header_start|>{role}<|header_end|>\n\n" for role in ("user", "assistant"))
    processor = getattr(tf, f"{kind}Processor")(
        tf.MuseGlimmerImageProcessor(max_image_tokens=64), tf.MuseGlimmerVideoProcessor(), tokens, *parts,
        chat_template=template(user, "<|eot|>", bot, "<|patch|>", bos="<s>"),
    )  # fmt: skip
    image, video = ids(tokens, "<|patch|>", "<|video|>")
    config = getattr(tf, f"{kind}Config")(
        vision_config=VISION, text_config=text_config.to_dict(), image_token_id=image, video_token_id=video,
        out_hidden_size=4 * TOWER["hidden_size"], projector_hidden_size=48, **more,
    )  # fmt: skip
    return build(getattr(tf, f"{kind}ForConditionalGeneration"), config), processor


def muse_glimmer():
    return _muse("MuseGlimmer", _tokens(), text("MuseGlimmerTextConfig", **TEXT))


def muse_spark():
    """It hears, too; its experts are narrower than what is around them."""
    tokens = _tokens(
        audio_token="<|audio|>", audio_start_token="<|soft_audio_start|>", audio_end_token="<|soft_audio_end|>"
    )
    experts = {"mlp_layer_types": ["dense", "sparse", "sparse"], "num_local_experts": 4, "num_experts_per_tok": 2,
               "moe_intermediate_size": 32, "moe_hidden_size": 48}  # fmt: skip
    audio = {"patch_sizes": [4, 2], "hidden_sizes": [16, 32], "depths": [1, 1], "num_hidden_layers": 2,
             "out_hidden_size": WIDTH}  # fmt: skip
    return _muse(
        "MuseSpark", tokens, text("MuseSparkTextConfig", **TEXT, **experts), tf.MuseSparkFeatureExtractor(),
        audio_config=audio, audio_token_id=tokens.audio_token_id,
    )  # fmt: skip
