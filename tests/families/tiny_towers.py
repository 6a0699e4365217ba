"""Tiny checkpoints of families whose tower or resampler is peculiar, before a text model with causal attention."""

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


def aria():
    marks = ["<fim_prefix>", "<fim_suffix>"]
    tokens = tokenizer(["<|im_start|>", "<|im_end|>", *marks], eos="<|im_end|>", image_token="<|img|>")
    # Images are padded to a square of 980 pixels: it takes no other size but 490.
    processor = tf.AriaProcessor(
        tf.AriaImageProcessorPil(), tokens, size_conversion={490: 4, 980: 8},
        chat_template=chatml("<fim_prefix><|img|><fim_suffix>"),
    )  # fmt: skip
    experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    config = tf.AriaConfig(
        vision_config=tf.Idefics3VisionConfig(**TOWER, image_size=980, patch_size=70),
        text_config=text("AriaTextConfig", **experts), image_token_index=tokens.image_token_id,
        projector_patch_to_query_dict={49: 4, 196: 8},
    )  # fmt: skip
    return build(tf.AriaForConditionalGeneration, config), processor


def vipllava():
    tokens = tokenizer(image_token="<image>")
    processor = llava_processor(tokens, template("###Human: ", "", "###Assistant:", "<image>\n"))
    config = tf.VipLlavaConfig(
        vision_config=clip(), text_config=text(), image_token_index=tokens.image_token_id,
        vision_feature_layer=[-1, -2, 0],
    )  # fmt: skip
    return build(tf.VipLlavaForConditionalGeneration, config), processor


def deepseek_vl_hybrid():
    tokens = tokenizer(image_token="<image_placeholder>")
    pixels = tf.DeepseekVLHybridImageProcessorPil(size=SIZE, high_res_size={"height": 64, "width": 64})
    processor = tf.DeepseekVLHybridProcessor(
        pixels, tokens, num_image_tokens=4,
        chat_template=template("User: ", "\n\n", "Assistant:", "<image_placeholder>"),
    )  # fmt: skip
    fine = tf.SamVisionConfig(
        hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        window_size=4, global_attn_indexes=[1], num_pos_feats=16, mlp_dim=48,
    )  # fmt: skip
    config = tf.DeepseekVLHybridConfig(
        vision_config=siglip(), high_res_vision_config=fine, text_config=text(), image_token_id=tokens.image_token_id
    )
    model = build(tf.DeepseekVLHybridForConditionalGeneration, config)
    # Zero in a new model: half of what the finer tower sees would be left out.
    model.model.high_res_vision_alpha.data.fill_(0.7)
    return model, processor


def granite4_vision():
    """Each of its layers adds image features of its own to what the layer before it left."""
    tokens = tokenizer(["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"], eos="<|end_of_text|>",
                       image_token="<image>")  # fmt: skip
    pins = [[56, 112], [112, 56], [112, 112]]
    pixels = tf.LlavaNextImageProcessorPil(
        size={"height": 56, "width": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pins
    )
    user, bot = (f"<|start_of_role|>{role}<|end_of_role|>" for role in ("user", "assistant"))
    processor = tf.Granite4VisionProcessor(
        pixels, tokens, patch_size=14, vision_feature_select_strategy="full", downsample_rate="1/2",
        chat_template=template(user, "<|end_of_text|>\n", bot, "<image>\n"),
    )  # fmt: skip
    scales = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.6,
              "attention_multiplier": 0.2, "num_hidden_layers": 6}  # fmt: skip
    vision = TOWER | {"hidden_size": 64, "num_hidden_layers": 3, "image_size": 56, "patch_size": 14}
    config = tf.Granite4VisionConfig(
        vision_config=tf.SiglipVisionConfig(**vision), text_config=text("Granite4VisionTextConfig", **scales),
        image_token_index=tokens.image_token_id, image_grid_pinpoints=pins, vision_feature_select_strategy="full",
        downsample_rate="1/2", deepstack_layer_map=[[-1, 0], [1, 1]], spatial_vision_layer=-1,
        spatial_target_layers=[2, 3, 4, 5], projector_dropout=0.0,
        qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 48,
                        "cross_attention_frequency": 1, "use_qformer_text_input": False, "vocab_size": 8},
    )  # fmt: skip
    return build(tf.Granite4VisionForConditionalGeneration, config), processor


def video_llama_3():
    named = {"image_token": "<image>", "video_token": "<video>"}
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", **named)
    pixels = tf.VideoLlama3ImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 16, patch_size=14, merge_size=1)
    processor = still(tf.VideoLlama3Processor)(pixels, tokens, chat_template=chatml("<image>"))
    config = tf.VideoLlama3Config(
        vision_config=tf.VideoLlama3VisionConfig(**TOWER, patch_size=14), text_config=text("Qwen2Config"),
        image_token_id=tokens.image_token_id, video_token_id=tokens.video_token_id,
    )  # fmt: skip
    return build(tf.VideoLlama3ForConditionalGeneration, config), processor


def molmo2():
    """Its image tokens lie behind the text model's vocabulary, and see each other in both directions."""
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    marks = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<im_low>", "<frame_start>",
             "<frame_end>"]  # fmt: skip
    tokens = tokenizer(["<|im_start|>", "<|im_end|>", *marks], eos="<|im_end|>", **named)
    pixels = tf.Molmo2ImageProcessor(
        size={"height": 56, "width": 56}, patch_size=14, max_crops=4, overlap_margins=[1, 1], pooling_size=[2, 2]
    )
    processor = tf.Molmo2Processor(pixels, tf.Molmo2VideoProcessor(), tokens, chat_template=chatml("<|image|>"))
    start, low, end, patch, frame, frame_end = ids(
        tokens, "<im_start>", "<low_res_im_start>", "<im_end>", "<im_patch>", "<frame_start>", "<frame_end>"
    )
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = tf.Molmo2Config(
        vision_config=tf.Molmo2VisionConfig(
            **TOWER | heads | {"num_hidden_layers": 3}, image_size=[56, 56], patch_size=14
        ),
        adapter_config=tf.Molmo2AdapterConfig(
            **heads, vision_feature_layer=[-1, 0], hidden_size=32, intermediate_size=48, text_hidden_size=WIDTH
        ),
        # One layer of three has the longer context's rotary table.
        text_config=text(
            "Molmo2TextConfig", vocab_size=start, additional_vocab_size=16, rope_scaling_layers=[1],
            rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                             "original_max_position_embeddings": 1024},
        ),
        image_start_token_id=start, low_res_image_start_token_id=low, image_end_token_id=end, image_patch_id=patch,
        frame_start_token_id=frame, frame_end_token_id=frame_end,
    )  # fmt: skip
    return build(tf.Molmo2ForConditionalGeneration, config), processor


def perception_lm():
    tokens = tokenizer(["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
                       image_token="<|image|>", video_token="<|video|>")  # fmt: skip
    user, bot = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    processor = tf.PerceptionLMProcessor(
        tf.PerceptionLMVideoProcessor(), tf.PerceptionLMImageProcessor(tile_size=56, max_num_tiles=4), tokens,
        patch_size=14, pooling_ratio=2, chat_template=template(user, "<|eot_id|>", bot, "<|image|>"),
    )  # fmt: skip
    size = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": [56, 56], "ref_feat_shape": [4, 4]}
    vision = tf.TimmWrapperConfig(
        architecture="vit_pe_core_large_patch14_336", do_pooling=False,
        model_args=size | {"global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1},
    )  # fmt: skip
    config = tf.PerceptionLMConfig(
        vision_config=vision, text_config=text(), projector_pooling_ratio=2, image_token_id=tokens.image_token_id,
        video_token_id=tokens.video_token_id,
    )  # fmt: skip
    return build(tf.PerceptionLMForConditionalGeneration, config, embed=0.4), processor


def fast_vlm():
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", image_token="<image>")
    side = {"height": 128, "width": 128}
    processor = tf.LlavaProcessor(
        tf.CLIPImageProcessorPil(size={"shortest_edge": 128}, crop_size=side), tokens, patch_size=64,
        vision_feature_select_strategy="full", num_additional_image_tokens=0, chat_template=chatml("<image>\n"),
    )  # fmt: skip
    stages = {"layers": [1, 1, 1, 1, 1], "embed_dims": [32, 32, 32, 32, 32], "mlp_ratios": [1, 1, 1, 1, 1]}
    vision = tf.TimmWrapperConfig(
        architecture="fastvit_mci3", do_pooling=True, model_args={"inference_mode": True, **stages}
    )
    vision.hidden_size = 64
    config = tf.FastVlmConfig(
        vision_config=vision, text_config=text("Qwen2Config"), image_token_index=tokens.image_token_id,
        image_seq_length=4,
    )  # fmt: skip
    return build(tf.FastVlmForConditionalGeneration, config), processor
