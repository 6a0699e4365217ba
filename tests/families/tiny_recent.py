"""Tiny checkpoints of families with layers that are scaled, carry Mamba's state, or have positions by their kind."""

import transformers as tf
from tiny_mrope import QWEN, ROPE, TOWER_2_5, TOWER_3
from tiny_parts import build, chatml, ids, still, template, text, tokenizer
from tiny_windows import SLIDING


def _patches(kind="Qwen2VL", patch=14, **more):
    """An image processor in the manner of Qwen2-VL's. `kind`: the prefix of its class's name."""
    return getattr(tf, f"{kind}ImageProcessorPil")(
        min_pixels=28 * 28, max_pixels=28 * 28 * 64, patch_size=patch, merge_size=2, **more
    )


def hyperclovax_vision_v2():
    """Its text model multiplies logits by what others of its kind divide them by."""
    named = {"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>"}
    marks = ["<|im_start|>", "<|im_end|>", "<|image_start|>", "<|image_end|>", "<think>", "</think>"]
    tokens = tokenizer(marks, eos="<|im_end|>", **named)
    shown = template(
        "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|image_start|><|IMAGE_PAD|><|image_end|>"
    )
    scales = {"embedding_multiplier": 2.0, "logits_scaling": 0.5, "residual_multiplier": 0.7,
              "attention_multiplier": 0.3}  # fmt: skip
    config = tf.HyperCLOVAXVisionV2Config(
        vision_config=tf.Qwen2_5_VLVisionConfig(**TOWER_2_5).to_dict(),
        text_config=text("HyperCLOVAXConfig", **scales).to_dict(), image_token_id=tokens.image_token_id,
        video_token_id=tokens.video_token_id,
    )  # fmt: skip
    processor = still(tf.HyperCLOVAXVisionV2Processor)(_patches(), tokens, chat_template=shown)
    return build(tf.HyperCLOVAXVisionV2ForConditionalGeneration, config), processor


def nemotron_h_omni():
    marks = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<so_start>", "<so_end>", "<video>", "<so_embedding>"]
    named = {"image_token": "<image>", "image_start_token": "<img>", "image_end_token": "</img>"}
    tokens = tokenizer(marks, eos="<|im_end|>", **named)
    processor = tf.NemotronH_Omni_Reasoning_V3Processor(
        tf.NemotronH_Omni_Reasoning_V3ImageProcessor(patch_size=8, min_num_patches=16, max_num_patches=64),
        tf.NemotronH_Omni_Reasoning_V3VideoProcessor(patch_size=8), tokens, tf.ParakeetFeatureExtractor(),
        chat_template=template("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n<think>\n", "<image>"),
    )  # fmt: skip
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 1.5, "patch_size": 8,
              "max_img_size": 64, "num_cls_tokens": 2, "num_registers": 2, "video_temporal_patch_size": 2}  # fmt: skip
    audio = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
             "subsampling_conv_channels": 8, "projection_hidden_size": 32, "projection_bias": False}  # fmt: skip
    # transformers cuts time steps off at the least one in a pass of several tokens, and not in a step of one.
    mamba = {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16, "chunk_size": 16,
             "time_step_min": 1e-8}  # fmt: skip
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
               "moe_shared_expert_intermediate_size": 48}  # fmt: skip
    kinds = ["linear_attention", "moe", "full_attention", "mlp", "linear_attention"]
    image, video, sound = ids(tokens, "<image>", "<video>", "<so_embedding>")
    config = tf.NemotronH_Omni_Reasoning_V3_Config(
        vision_config=vision, audio_config=audio, vision_hidden_size=32, projector_hidden_size=48,
        text_config=text("NemotronHConfig", layers_block_type=kinds, num_hidden_layers=5, **mamba, **experts).to_dict(),
        image_token_id=image, video_token_id=video, audio_token_id=sound,
    )  # fmt: skip
    return build(tf.NemotronH_Omni_Reasoning_V3, config, embed=0.2), processor


def cosmos3_edge():
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", **QWEN)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_patches": 16, "patch_size": 16}  # fmt: skip
    start, end = ids(tokens, "<|vision_start|>", "<|vision_end|>")
    config = tf.Cosmos3EdgeConfig(
        vision_config=vision, text_config=text("Cosmos3EdgeTextConfig", rope_parameters=ROPE).to_dict(),
        image_token_id=tokens.image_token_id, video_token_id=tokens.video_token_id, vision_start_token_id=start,
        vision_end_token_id=end, projector_hidden_size=48,
    )  # fmt: skip
    processor = still(tf.Cosmos3EdgeProcessor)(
        tf.Cosmos3EdgeImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}), tokens,
        chat_template=chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    return build(tf.Cosmos3EdgeForConditionalGeneration, config), processor


def cohere_compass():
    """Layers with windows have positions in three directions, the others none."""
    marks = {name: f"<|{name}|>" for name in ("IMAGE_PAD", "VIDEO_PAD", "VISION_START", "VISION_END")}
    turns = ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"]
    tokens = tokenizer([*turns, *marks.values()])
    begin, close, user, bot = turns
    processor = still(tf.CohereCompassProcessor)(
        _patches("CohereCompass", 16), tokens,
        chat_template=template(
            begin + user, close, begin + bot, "<|VISION_START|><|IMAGE_PAD|><|VISION_END|>", bos="<s>"
        ),
    )  # fmt: skip
    image, video, start, end = ids(tokens, *marks.values())
    rope = {"sliding_attention": ROPE, "full_attention": None}
    config = tf.CohereCompassConfig(
        vision_config=TOWER_3, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end,
        text_config=text("CohereCompassTextConfig", rope_parameters=rope, logit_scale=0.5, **SLIDING).to_dict(),
    )  # fmt: skip
    return build(tf.CohereCompassForConditionalGeneration, config, embed=0.08, tied=True), processor
