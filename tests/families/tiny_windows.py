"""Tiny checkpoints of families that mask: sliding windows, chunks, bidirectional prefixes and cross-attention."""

import transformers as tf
from tiny_parts import SIZE, TOWER, VOCABULARY, WIDTH, build, ids, siglip, still, template, text, tokenizer

# Shorter than the prompts, so that it matters.
WINDOW = 16
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def _turns_of_gemma(image):
    return template("<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", image, bos="<s>")


def gemma3():
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens = tokenizer(["<start_of_turn>", "<end_of_turn>"], **named)
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size=SIZE), tokens, image_seq_length=4,
        chat_template=_turns_of_gemma("<start_of_image>"),
    )  # fmt: skip
    config = tf.Gemma3Config(
        vision_config=siglip(patch=7), mm_tokens_per_image=4, image_token_index=tokens.image_token_id,
        boi_token_index=tokens.boi_token_id, eoi_token_index=tokens.eoi_token_id,
        text_config=text("Gemma3TextConfig", **SLIDING, query_pre_attn_scalar=16),
    )  # fmt: skip
    return build(tf.Gemma3ForConditionalGeneration, config, embed=0.05), processor


def _paligemma(kind, **more):
    tokens = tokenizer(image_token="<image>")
    pixels = tf.SiglipImageProcessorPil(size=SIZE)
    pixels.image_seq_length = 4
    processor = tf.PaliGemmaProcessor(pixels, tokens, chat_template=template("", "\n", "", "<image>"))
    config = tf.PaliGemmaConfig(
        vision_config=siglip(projection_dim=WIDTH), image_token_index=tokens.image_token_id, projection_dim=WIDTH,
        # The processor adds 1,152 tokens for places and segments.
        text_config=text(kind, vocab_size=1600, **more),
    )  # fmt: skip
    return build(tf.PaliGemmaForConditionalGeneration, config, embed=0.05), processor


def paligemma():
    return _paligemma("GemmaConfig")


def paligemma2():
    return _paligemma("Gemma2Config", sliding_window=WINDOW, query_pre_attn_scalar=16)


COHERE = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL",
          *(f"TILE_{number}" for number in range(1, 13)), "<|START_TURN|>", "<|END_TURN|>"]  # fmt: skip


def _turns_of_cohere(image):
    return template("<|START_TURN|>", "<|END_TURN|>", "<|START_TURN|>bot", image)


def _cohere_text():
    return text("Cohere2Config", **SLIDING, logit_scale=0.25)


def aya_vision():
    tokens = tokenizer(COHERE, image_token="<image>")
    pixels = tf.GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = tf.AyaVisionProcessor(
        pixels, tokens, patch_size=7, img_size=28, downsample_factor=2, chat_template=_turns_of_cohere("<image>")
    )
    config = tf.AyaVisionConfig(
        vision_config=siglip(patch=7), image_token_index=ids(tokens, "<|IMG_PATCH|>")[0], text_config=_cohere_text()
    )
    return build(tf.AyaVisionForConditionalGeneration, config, embed=0.08, tied=True), processor


def cohere2_vision():
    named = {"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "image_token": "<|IMG_PATCH|>"}
    tokens = tokenizer(COHERE, img_line_break_token="<|IMG_LINE_BREAK|>", **named)
    pixels = tf.Cohere2VisionImageProcessor(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=4, patch_size=2)
    processor = tf.Cohere2VisionProcessor(pixels, tokens, chat_template=_turns_of_cohere("<|IMG_PATCH|>"))
    config = tf.Cohere2VisionConfig(
        vision_config=siglip(patch=7), image_token_id=tokens.image_token_id, alignment_intermediate_size=64,
        text_config=_cohere_text(),
    )  # fmt: skip
    return build(tf.Cohere2VisionForConditionalGeneration, config, embed=0.01, tied=True), processor


def gemma4():
    named = {f"{part}_token": name for part, name in (
        ("image", "<|image|>"), ("boi", "<|image>"), ("eoi", "<image|>"),
        ("audio", "<|audio|>"), ("boa", "<|audio>"), ("eoa", "<audio|>"),
    )}  # fmt: skip
    tokens = tokenizer(["<start_of_turn>", "<end_of_turn>"], **named)
    pixels = tf.Gemma4ImageProcessorPil(patch_size=8, max_soft_tokens=70, pooling_kernel_size=2)
    processor = tf.Gemma4Processor(
        tf.Gemma4AudioFeatureExtractor(), pixels, tokens, tf.Gemma4VideoProcessor(),
        chat_template=_turns_of_gemma("<|image|>"),
    )  # fmt: skip
    shared = {
        "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4,
        "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400,
        "final_logit_softcapping": 30.0, "global_head_dim": 32, "num_global_key_value_heads": 1,
        "use_bidirectional_attention": "vision",
    }  # fmt: skip
    vision = TOWER | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 8, "pooling_kernel_size": 2,
                      "position_embedding_size": 64}  # fmt: skip
    config = tf.Gemma4Config(
        vision_config=vision, audio_config=None, text_config=text("Gemma4TextConfig", **shared),
        image_token_id=tokens.image_token_id, boi_token_id=tokens.boi_token_id, eoi_token_id=tokens.eoi_token_id,
        audio_token_id=tokens.audio_token_id, boa_token_id=tokens.boa_token_id, eoa_token_index=tokens.eoa_token_id,
        video_token_id=ids(tokens, "<|video|>")[0],
    )  # fmt: skip
    return build(tf.Gemma4ForConditionalGeneration, config, embed=0.05), processor


def gemma4_unified():
    """Gemma 4 without a tower: patches go into the decoder by a linear layer."""
    named = {f"{part}_token": name for part, name in (
        ("image", "<|image|>"), ("boi", "<|image>"), ("eoi", "<image|>"),
        ("audio", "<|audio|>"), ("boa", "<|audio>"), ("eoa", "<audio|>"),
    )}  # fmt: skip
    tokens = tokenizer(["<start_of_turn>", "<end_of_turn>"], **named)
    pixels = tf.Gemma4UnifiedImageProcessor(patch_size=8, max_soft_tokens=70, pooling_kernel_size=2)
    processor = tf.Gemma4UnifiedProcessor(
        tf.Gemma4UnifiedAudioFeatureExtractor(), pixels, tokens, tf.Gemma4UnifiedVideoProcessor(),
        chat_template=_turns_of_gemma("<|image|>"),
    )  # fmt: skip
    vision = {"patch_size": 8, "pooling_kernel_size": 2, "mm_embed_dim": WIDTH, "mm_posemb_size": 64,
              "output_proj_dims": WIDTH}  # fmt: skip
    kinds = {
        "sliding_window": WINDOW, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "attention_k_eq_v": True, "final_logit_softcapping": 30.0, "global_head_dim": 32,
        "num_global_key_value_heads": 1,
    }  # fmt: skip
    config = tf.Gemma4UnifiedConfig(
        vision_config=vision, audio_config=None, text_config=text("Gemma4UnifiedTextConfig", **kinds),
        image_token_id=tokens.image_token_id, boi_token_id=tokens.boi_token_id, eoi_token_id=tokens.eoi_token_id,
        audio_token_id=tokens.audio_token_id, boa_token_id=tokens.boa_token_id, eoa_token_index=tokens.eoa_token_id,
        video_token_id=ids(tokens, "<|video|>")[0],
    )  # fmt: skip
    return build(tf.Gemma4UnifiedForConditionalGeneration, config, embed=0.05), processor


def gemma3n():
    named = {f"{part}_token": name for part, name in (
        ("sot", "<start_of_turn>"), ("eot", "<end_of_turn>"), ("boi", "<start_of_image>"), ("boa", "<start_of_audio>"),
        ("eoi", "<end_of_image>"), ("image", "<image_soft_token>"), ("eoa", "<end_of_audio>"),
        ("audio", "<audio_soft_token>"),
    )}  # fmt: skip
    tokens = tokenizer(**named)
    processor = tf.Gemma3nProcessor(
        tf.Gemma3nAudioFeatureExtractor(), tf.SiglipImageProcessorPil(size={"height": 64, "width": 64}), tokens,
        image_seq_length=4, audio_seq_length=4, chat_template=_turns_of_gemma("<image_soft_token>"),
    )  # fmt: skip
    # Of the vocabulary, two ids belong to pictures, and all behind them to sounds.
    pictures, sounds = tokens.eoi_token_id, tokens.eoa_token_id
    vision = {"architecture": "test_efficientnet_ln", "hidden_size": 256, "vocab_offset": pictures, "vocab_size": 2}
    audio = {"hidden_size": 32, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "vocab_offset": sounds,
             "vocab_size": VOCABULARY - sounds, "sscp_conv_channel_size": [8, 4]}  # fmt: skip
    shared = {
        "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4,
        "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": pictures,
        "activation_sparsity_pattern": [0.8, 0.0, 0.0, 0.0], "laurel_rank": 16, "altup_num_inputs": 4,
    }  # fmt: skip
    marks = {f"{name}_token_id": getattr(tokens, f"{name}_token_id")
             for name in ("image", "boi", "eoi", "audio", "boa", "eoa")}  # fmt: skip
    config = tf.Gemma3nConfig(
        vision_config=vision, audio_config=audio, text_config=text("Gemma3nTextConfig", **shared),
        vision_soft_tokens_per_image=4, audio_soft_tokens_per_image=4, **marks,
    )  # fmt: skip
    model = build(tf.Gemma3nForConditionalGeneration, config, embed=0.05)
    for layer in model.get_decoder().layers:
        # Zero in a new model: no layer would see its embeddings.
        layer.altup.correct_output_scale.data.fill_(0.7)
    return model, processor


def llama4(floor_scale=8192):
    """From the position floor_scale on, it scales queries by their place in the pass."""
    marks = ["image_start", "image_end", "patch", "tile_x_separator", "tile_y_separator", "header_start",
             "header_end", "eot"]  # fmt: skip
    tokens = tokenizer([f"<|{mark}|>" for mark in marks], image_token="<|image|>")
    user, bot = (f"<|header_start|>{role}<|header_end|>\n\n" for role in ("user", "assistant"))
    processor = tf.Llama4Processor(
        tf.Llama4ImageProcessor(size=SIZE, max_patches=4), tokens, patch_size=7, pixel_shuffle_ratio=0.5,
        chat_template=template(user, "<|eot|>", bot, "<|image|>", bos="<s>"),
    )  # fmt: skip
    vision = TOWER | {"intermediate_size": 128, "image_size": 28, "patch_size": 7, "vision_output_dim": 48,
                      "projector_input_dim": 48, "projector_output_dim": 48}  # fmt: skip
    mixed = {
        "intermediate_size_mlp": 96, "num_local_experts": 4, "attention_chunk_size": 32, "num_hidden_layers": 4,
        "no_rope_layers": [1, 1, 0, 1], "interleave_moe_layer_step": 2, "floor_scale": floor_scale,
        "use_qk_norm": True,
    }  # fmt: skip
    config = tf.Llama4Config(
        vision_config=vision, text_config=text("Llama4TextConfig", **mixed),
        image_token_index=ids(tokens, "<|patch|>")[0],
    )  # fmt: skip
    return build(tf.Llama4ForConditionalGeneration, config), processor


def llama4_beyond():
    """Prompts of the suite are longer than this floor_scale."""
    return llama4(floor_scale=16)


def llama4_near():
    """Prompts of the suite are shorter than this floor_scale, and go beyond it with a longer answer."""
    return llama4(floor_scale=160)


def mllama():
    """Its image token lies behind the vocabulary: it is embedded, and has no logit."""
    tokens = tokenizer(["<|python_tag|>", "<|eot_id|>", "<|image|>"])
    [image] = ids(tokens, "<|image|>")
    processor = tf.MllamaProcessor(
        tf.MllamaImageProcessorPil(size=SIZE, max_image_tiles=4), tokens,
        chat_template=template("<|user|>", "<|eot_id|>", "<|assistant|>", "<|image|>", bos="<s>"),
    )  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1,
        "attention_heads": 2, "image_size": 28, "patch_size": 14, "max_num_tiles": 4, "vision_output_dim": 96,
        "intermediate_layers_indices": [0, 1],
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = tf.MllamaConfig(
        vision_config=vision, image_token_index=image,
        text_config=text(
            "MllamaTextConfig", cross_attention_layers=[1], num_hidden_layers=4, rope_parameters=rope, vocab_size=image
        ),
    )  # fmt: skip
    model = build(tf.MllamaForConditionalGeneration, config)
    for name, weight in model.named_parameters():
        if "gate" in name and weight.numel() == 1:
            # Zero in a new model: the picture would not be seen.
            weight.data.fill_(0.7)
    return model, processor


def exaone4_5():
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokens = tokenizer(["<vision>", "</vision>", "<|user|>", "<|assistant|>"], eos="<|endofturn|>", **named)
    processor = still(tf.Exaone4_5_Processor)(
        tf.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 64, patch_size=14, merge_size=2), tokens,
        chat_template=template(
            "<|user|>\n", "<|endofturn|>\n", "<|assistant|>\n", "<vision><|image_pad|></vision>"
        ),
    )  # fmt: skip
    # Fewer heads of keys than of queries in the tower, windows in both.
    vision = {
        "hidden_size": 32, "out_hidden_size": WIDTH, "intermediate_size": 48, "depth": 2, "num_heads": 2,
        "num_key_value_heads": 1, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = tf.Exaone4_5_Config(
        vision_config=vision, text_config=text("Exaone4Config", **SLIDING, sliding_window_pattern="LGL").to_dict(),
        image_token_id=tokens.image_token_id, video_token_id=tokens.video_token_id,
    )  # fmt: skip
    return build(tf.Exaone4_5_ForConditionalGeneration, config), processor


def step3p7():
    marks = ["<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>", "<im_patch>"]
    tokens = tokenizer(["<|im_start|>", "<|im_end|>", "<think>", "</think>", *marks], eos="<|im_end|>")
    processor = tf.Step3p7Processor(
        tf.Step3p7ImageProcessor(size={"height": 56, "width": 56}, patch_size=28, vision_patch_size=7), tokens,
        chat_template=template(
            "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n<think>\n", "<im_patch>", bos="<s>"
        ),
    )  # fmt: skip
    # Other numbers of heads, and other rotary tables, by the kind of a layer; a limit of the activations in one.
    mixed = SLIDING | {
        "num_sliding_attention_heads": 6, "rope_theta": [10000.0, 50000.0, 10000.0],
        "partial_rotary_factors": [1.0, 0.5, 1.0], "swiglu_limits": [None, 1.0, None],
        "swiglu_limits_shared": [None, 1.0, None],
    }  # fmt: skip
    experts = {"mlp_layer_types": ["dense", "sparse", "sparse"], "n_routed_experts": 4, "num_experts_per_tok": 2,
               "moe_intermediate_size": 32, "share_expert_dim": 48}  # fmt: skip
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 1.5, "image_size": 56,
              "patch_size": 7, "max_position_embeddings": 64}  # fmt: skip
    config = tf.Step3p7Config(
        vision_config=vision, text_config=text("Step3p7TextConfig", **mixed, **experts).to_dict(),
        image_token_id=ids(tokens, "<im_patch>")[0],
    )  # fmt: skip
    return build(tf.Step3p7ForConditionalGeneration, config), processor
