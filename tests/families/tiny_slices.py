"""Tiny checkpoints of families that cut a picture into slices, or take it at any size, before a plain text model."""

import transformers as tf
from tiny_parts import TOWER, build, chatml, ids, minicpm_processor, still, template, text, tokenizer


def _idefics(kind, pixels, *video):
    """`kind`: the prefix of the classes' names."""
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokens = tokenizer(
        ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *rows], image_token="<image>"
    )
    processor = getattr(tf, f"{kind}Processor")(
        pixels(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True), tokens,
        *video, image_seq_len=4, chat_template=template("User:", "<end_of_utterance>\n", "Assistant:", "<image>"),
    )  # fmt: skip
    config = getattr(tf, f"{kind}Config")(
        vision_config=getattr(tf, f"{kind}VisionConfig")(**TOWER, image_size=28, patch_size=7), text_config=text(),
        scale_factor=2, image_token_id=tokens.image_token_id,
    )  # fmt: skip
    return build(getattr(tf, f"{kind}ForConditionalGeneration"), config), processor


def idefics3():
    return _idefics("Idefics3", tf.Idefics3ImageProcessorPil)


def smolvlm():
    return _idefics("SmolVLM", tf.SmolVLMImageProcessorPil, tf.SmolVLMVideoProcessor())


def mistral3():
    tokens = tokenizer(["[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"], image_token="[IMG]")
    pixels = tf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14})
    processor = tf.PixtralProcessor(
        pixels, tokens, patch_size=14, spatial_merge_size=2,
        chat_template=template("[INST]", "[/INST]", "", "[IMG]", bos="<s>", end_of_answer="</s>"),
    )  # fmt: skip
    config = tf.Mistral3Config(
        vision_config=tf.PixtralVisionConfig(**TOWER, image_size=112, patch_size=14),
        text_config=text("MistralConfig", sliding_window=None), image_token_index=tokens.image_token_id,
        spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    return build(tf.Mistral3ForConditionalGeneration, config), processor


def minicpmv4_6():
    processor = minicpm_processor("MiniCPMV4_6")
    tokens = processor.tokenizer
    vision = TOWER | {"num_hidden_layers": 3, "image_size": 112, "patch_size": 14, "insert_layer_id": 1}
    config = tf.MiniCPMV4_6Config(
        vision_config=vision, text_config=text("Qwen3Config"), insert_layer_id=1,
        image_token_id=tokens.image_token_id, video_token_id=tokens.video_token_id,
    )  # fmt: skip
    return build(tf.MiniCPMV4_6ForConditionalGeneration, config), processor


def kimi_k25():
    tokens = tokenizer(
        ["<|media_start|>", "<|media_end|>", "<|im_end|>"], image_token="<|media_pad|>", video_token="<|video_pad|>"
    )
    pixels = tf.Kimi_K25ImageProcessor(patch_size=14, max_patches=64, size={"max_height": 112, "max_width": 112})
    processor = still(tf.Kimi_K25Processor)(
        pixels, tokens,
        chat_template=template("user:", "<|im_end|>", "assistant:", "<|media_start|><|media_pad|><|media_end|>"),
    )  # fmt: skip
    experts = {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    }  # fmt: skip
    latent = {
        "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
        "num_key_value_heads": 4, "head_dim": 8,
    }  # fmt: skip
    start, end = ids(tokens, "<|media_start|>", "<|media_end|>")
    config = tf.Kimi_K25Config(
        vision_config=TOWER | {"patch_size": 14, "pos_emb_height": 8, "pos_emb_width": 8},
        text_config=text("DeepseekV3Config", **experts, **latent).to_dict(), projection_hidden_size=32,
        image_token_id=tokens.image_token_id, video_token_id=tokens.video_token_id, vision_start_token_id=start,
        vision_end_token_id=end,
    )  # fmt: skip
    return build(tf.Kimi_K25ForConditionalGeneration, config), processor


def lfm2_vl():
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 4) for column in range(1, 4)]
    named = {"image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>", "image_token": "<image>"}
    tokens = tokenizer(["<|im_start|>", "<|im_end|>", "<|img_thumbnail|>", *tiles], eos="<|im_end|>", **named)
    pixels = tf.Lfm2VlImageProcessor(
        tile_size=56, encoder_patch_size=7, min_image_tokens=4, max_image_tokens=16, max_tiles=4,
        size={"height": 56, "width": 56},
    )  # fmt: skip
    processor = tf.Lfm2VlProcessor(pixels, tokens, chat_template=chatml("<image>"))
    kinds = ["conv", "full_attention", "conv"]
    config = tf.Lfm2VlConfig(
        vision_config=tf.Siglip2VisionConfig(**TOWER, patch_size=7, num_patches=64), downsample_factor=2,
        image_token_id=tokens.image_token_id, projector_hidden_size=48,
        text_config=text("Lfm2Config", layer_types=kinds, block_auto_adjust_ff_dim=False),
    )  # fmt: skip
    return build(tf.Lfm2VlForConditionalGeneration, config, embed=0.2), processor


def lfm3_vl():
    named = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }  # fmt: skip
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", **named)
    pixels = tf.Qwen2VLImageProcessorPil(
        min_pixels=28 * 28, max_pixels=28 * 28 * 64, patch_size=14, merge_size=2, temporal_patch_size=2
    )
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    processor = still(tf.Lfm3VlProcessor)(pixels, tokens, chat_template=chatml(shown))
    vision = tf.Lfm3VlVisionConfig(
        hidden_size=32, intermediate_size=48, patch_size=14, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, layer_types=["conv", "full_attention", "conv"],
    )  # fmt: skip
    start, end = ids(tokens, "<|vision_start|>", "<|vision_end|>")
    kinds = ["conv", "full_attention", "sliding_attention", "conv"]
    config = tf.Lfm3VlConfig(
        vision_config=vision, image_token_id=tokens.image_token_id, video_token_id=tokens.video_token_id,
        vision_start_token_id=start, vision_end_token_id=end, projector_hidden_size=48,
        text_config=text("Lfm3Config", layer_types=kinds, num_hidden_layers=4, sliding_window=16),
    )  # fmt: skip
    return build(tf.Lfm3VlForConditionalGeneration, config, embed=0.2), processor
