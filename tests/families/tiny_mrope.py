"""Tiny checkpoints of families with multimodal RoPE: a picture's tokens have a place in time, row and column."""

import transformers as tf
from tiny_parts import WIDTH, build, chatml, ids, minicpm_processor, still, template, text, tokenizer

ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
QWEN = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}  # fmt: skip
TOWER = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
TOWER_2 = TOWER | {"embed_dim": 32, "hidden_size": WIDTH, "mlp_ratio": 2, "patch_size": 14}
TOWER_2_5 = TOWER | {
    "hidden_size": 32, "out_hidden_size": WIDTH, "intermediate_size": 48, "patch_size": 14, "window_size": 56,
    "fullatt_block_indexes": [1],
}  # fmt: skip
TOWER_3_5 = TOWER | {
    "depth": 3, "hidden_size": 32, "out_hidden_size": WIDTH, "intermediate_size": 48, "patch_size": 16,
    "num_position_embeddings": 64,
}  # fmt: skip
HYBRID = ["linear_attention", "full_attention", "linear_attention"]
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
TOWER_3 = TOWER_3_5 | {"deepstack_visual_indexes": [0, 1]}


def _qwen(kind, vision, processor, text_kind=None, **more):
    """`kind` and `text_kind`: the prefixes of the classes' names, and of the text configuration's if it is another."""
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", **QWEN)
    pixels = tf.Qwen2VLImageProcessorPil(
        min_pixels=28 * 28, max_pixels=28 * 28 * 64, patch_size=vision["patch_size"], merge_size=2,
        temporal_patch_size=2,
    )  # fmt: skip
    shown = chatml("<|vision_start|><|image_pad|><|vision_end|>")
    start, end = ids(tokens, "<|vision_start|>", "<|vision_end|>")
    config = getattr(tf, f"{kind}Config")(
        vision_config=vision, image_token_id=tokens.image_token_id, video_token_id=tokens.video_token_id,
        vision_start_token_id=start, vision_end_token_id=end,
        text_config=text(f"{text_kind or kind}TextConfig", **{"rope_parameters": ROPE} | more).to_dict(),
    )  # fmt: skip
    model = build(getattr(tf, f"{kind}ForConditionalGeneration"), config)
    return model, still(processor)(pixels, tokens, chat_template=shown)


def qwen2_vl():
    return _qwen("Qwen2VL", TOWER_2, tf.Qwen2VLProcessor)


def qwen2_5_vl():
    return _qwen("Qwen2_5_VL", TOWER_2_5, tf.Qwen2_5_VLProcessor)


def qwen3_vl():
    return _qwen("Qwen3VL", TOWER_3, tf.Qwen3VLProcessor)


def cosmos3_omni():
    return _qwen("Cosmos3Omni", TOWER_3, tf.Qwen3VLProcessor, "Qwen3VL")


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def qwen3_vl_moe():
    return _qwen("Qwen3VLMoe", TOWER_3, tf.Qwen3VLProcessor, **EXPERTS)


def qwen3_5():
    return _qwen("Qwen3_5", TOWER_3_5, tf.Qwen3VLProcessor, layer_types=HYBRID, **LINEAR)


def qwen3_5_moe():
    # As published: fewer key heads than value heads, and three axes in the part of a head that is turned.
    rope = ROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    more = EXPERTS | LINEAR | {"linear_num_value_heads": 4, "shared_expert_intermediate_size": 32}
    return _qwen("Qwen3_5Moe", TOWER_3_5, tf.Qwen3VLProcessor, rope_parameters=rope, layer_types=HYBRID, **more)


GLM_TOWER = {"depth": 2, "hidden_size": 32, "num_heads": 2, "image_size": 112, "patch_size": 14,
             "out_hidden_size": WIDTH, "intermediate_size": 48}  # fmt: skip
# Of its text model.
GLM_ROPE = {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}}


def _glm(kind, text_config, parts="Glm4v", assistant="<|assistant|>\n<think>", tower=GLM_TOWER, newer=None):
    """`kind` and `parts`: the prefixes of the model's and of its processors' classes. `newer`: of a family with the
    model and the processor of an earlier one, the prefix of its configuration's and of its image processor's class.
    """
    marks = [f"<|{begin}_of_{what}|>" for what in ("image", "video") for begin in ("begin", "end")]
    tokens = tokenizer(
        [*marks, "<|user|>", "<|assistant|>", "<think>", "</think>"], image_token="<|image|>",
        video_token="<|video|>", eos="<|endoftext|>",
    )  # fmt: skip
    pixels = getattr(tf, f"{newer or parts}ImageProcessorPil")(
        size={"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 128}
    )
    shown = "<|begin_of_image|><|image|><|end_of_image|>"
    processor = still(getattr(tf, f"{parts}Processor"))(
        pixels, tokens, chat_template=template("<|user|>\n", "", assistant, shown)
    )
    names = [f"{what}_{begin}_token_id" for what in ("image", "video") for begin in ("start", "end")]
    config = getattr(tf, f"{newer or kind}Config")(
        vision_config=tower, text_config=text_config.to_dict(), image_token_id=tokens.image_token_id,
        video_token_id=tokens.video_token_id, **dict(zip(names, ids(tokens, *marks), strict=True)),
    )  # fmt: skip
    return build(getattr(tf, f"{kind}ForConditionalGeneration"), config), processor


def glm4v():
    return _glm("Glm4v", text("Glm4vTextConfig", **GLM_ROPE))


def glm4v_moe():
    experts = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
               "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}  # fmt: skip
    return _glm("Glm4vMoe", text("Glm4vMoeTextConfig", **GLM_ROPE, **experts))


def glm46v():
    tower = GLM_TOWER | {"model_type": "glm4v_vision"}
    return _glm("Glm46V", text("Glm4vTextConfig", **GLM_ROPE), "Glm46V", "<|assistant|>\n", tower)


def glmga():
    tower = GLM_TOWER | {"model_type": "glm4v_vision"}
    return _glm("Glm46V", text("Glm4vTextConfig", **GLM_ROPE), "Glm46V", "<|assistant|>\n", tower, "Glmga")


def glm_ocr():
    tower = {name: value for name, value in GLM_TOWER.items() if name != "image_size"}
    return _glm("GlmOcr", text("GlmOcrTextConfig", **GLM_ROPE), "Glm46V", "<|assistant|>\n", tower)


def minicpmv4_7():
    """A picture's slices lie on one canvas, as do the tokens around them."""
    processor = minicpm_processor("MiniCPMV4_7")
    tokens = processor.tokenizer
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3,
              "image_size": 112, "patch_size": 14, "insert_layer_id": 1}  # fmt: skip
    marks = ("image_start", "image_end", "slice_start", "slice_end")
    config = tf.MiniCPMV4_7Config(
        vision_config=vision, insert_layer_id=1, image_token_id=tokens.image_token_id,
        text_config=text("Qwen3_5TextConfig", rope_parameters=ROPE, layer_types=HYBRID, **LINEAR),
        video_token_id=tokens.video_token_id, newline_id=tokens.encode("\n")[0],
        **{f"{mark}_id": getattr(tokens, f"{mark}_token_id") for mark in marks},
    )  # fmt: skip
    return build(tf.MiniCPMV4_7ForConditionalGeneration, config), processor
