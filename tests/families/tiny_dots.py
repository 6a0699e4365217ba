"""A tiny checkpoint of dots3-note: an index of keys, windows with heads of their own, experts in tower and decoder."""

import transformers as tf
from tiny_mistral import EXPERTS, LATENT
from tiny_parts import TOWER, WIDTH, build, template, tokenizer
from tiny_parts import text as text_of
from tiny_windows import WINDOW


def dots3_note():
    marks = {"image": "<|imgpad|>", "video": "<|video_pad|>", "audio": "<|audio_comp_pad|>"}
    turns = ["<|userprompt|>", "<|endofuserprompt|>", "<|response|>", "<|endofresponse|>"]
    tokens = tokenizer([*turns, "<|img|>", "<|endofimg|>"], **{f"{name}_token": mark for name, mark in marks.items()})
    user, end, bot, end_of_answer = turns
    processor = tf.Dots3NoteProcessor(
        tf.Qwen2VLImageProcessorPil(
            min_pixels=28 * 28, max_pixels=28 * 28 * 64, patch_size=14, merge_size=2, temporal_patch_size=1
        ),
        tokens, tf.Qwen3VLVideoProcessor(), tf.Dots3NoteFeatureExtractor(),
        chat_template=template(user, end, bot, "<|img|><|imgpad|><|endofimg|>", end_of_answer=end_of_answer),
    )  # fmt: skip
    # As published: layers with windows have fewer heads, and latent keys and values of another width.
    windows = LATENT | {"q_lora_rank": 16, "kv_lora_rank": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    index = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 8, "sliding_window": WINDOW,
             "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"]}  # fmt: skip
    more = (
        EXPERTS | {"shared_experts_intermediate_size": 32} | {f"swa_{name}": value for name, value in windows.items()}
    )
    text_config = text_of("Dots3NoteTextConfig", q_lora_rank=24, **LATENT, **index, **more)
    config = tf.Dots3NoteConfig(
        text_config=text_config.to_dict(),
        vision_config=TOWER | EXPERTS | {
            "patch_size": 14, "adapter_in_dim": 32, "adapter_out_dim": WIDTH, "mlp_layer_types": ["dense", "sparse"],
            "num_local_experts": 4,
        },
        audio_config=TOWER | {
            "num_hidden_layers": 1, "feature_size": 16, "downsample_hidden_size": 8, "adapter_input_size": 32,
            "adapter_out_dim": WIDTH,
        },
        **{f"{name}_token_id": getattr(tokens, f"{name}_token_id") for name in marks},
    )  # fmt: skip
    return build(tf.Dots3NoteForConditionalGeneration, config), processor
