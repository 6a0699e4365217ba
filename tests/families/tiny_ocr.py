"""Tiny checkpoints of families that read pages: their towers are peculiar, and take pictures whole or in tiles."""

import transformers as tf
from tiny_mrope import HYBRID, LINEAR, ROPE
from tiny_parts import SIZE, TOWER, WIDTH, build, chatml, ids, minicpm_processor, template, text, tokenizer


def paddleocr_vl():
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    marks = ["<|IMAGE_START|>", "<|IMAGE_END|>", "<|video_pad|>"]
    tokens = tokenizer(marks, **named)
    processor = tf.PaddleOCRVLProcessor(
        tf.PaddleOCRVLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}, patch_size=14),
        tokens,
        chat_template=template(
            "User: ", "\n", "Assistant:\n", "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>", bos="<s>",
            end_of_answer="</s>",
        ),
    )  # fmt: skip
    start, end, video = ids(tokens, *marks)
    config = tf.PaddleOCRVLConfig(
        vision_config=TOWER | {"image_size": 112, "patch_size": 14},
        text_config=text("PaddleOCRTextConfig", rope_parameters=ROPE).to_dict(), image_token_id=tokens.image_token_id,
        video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    return build(tf.PaddleOCRVLForConditionalGeneration, config), processor


def _sam(**more):
    # Windows in each layer: of all 4,096 patches, attention would take seconds.
    return {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "window_size": 4, "global_attn_indexes": [], "mlp_dim": 48} | more  # fmt: skip


def got_ocr2():
    """Its processor writes 256 tokens for a picture, whatever the tower makes of it, and takes no text alone."""
    tokens = tokenizer(["<|im_start|>", "<|im_end|>", "<img>", "</img>"], eos="<|im_end|>", image_token="<imgpad>")
    processor = tf.GotOcr2Processor(
        tf.GotOcr2ImageProcessorPil(size={"height": 256, "width": 256}), tokens,
        chat_template=chatml("<img><imgpad></img>\n"),
    )  # fmt: skip
    config = tf.GotOcr2Config(
        vision_config=_sam(image_size=256, patch_size=4), text_config=text("Qwen2Config"),
        image_token_index=tokens.image_token_id,
    )  # fmt: skip
    return build(tf.GotOcr2ForConditionalGeneration, config), processor


def qianfan_ocr():
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", **named)
    pixels = tf.GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = tf.QianfanOCRProcessor(pixels, tokens, image_seq_length=4, chat_template=chatml("<image>\n"))
    config = tf.QianfanOCRConfig(
        vision_config=tf.QianfanOCRVisionConfig(**TOWER, image_size=[28, 28], patch_size=[7, 7]),
        text_config=text("Qwen3Config"), image_token_id=tokens.context_image_token_id,
    )  # fmt: skip
    return build(tf.QianfanOCRForConditionalGeneration, config, embed=0.8), processor


def lighton_ocr():
    named = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", **named)
    pixels = tf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size={"height": 28, "width": 28})
    processor = tf.LightOnOcrProcessor(
        pixels, tokens, patch_size=14, spatial_merge_size=2, chat_template=chatml("<|image_pad|>")
    )
    config = tf.LightOnOcrConfig(
        vision_config=tf.PixtralVisionConfig(**TOWER, image_size=112, patch_size=14), text_config=text("Qwen3Config"),
        image_token_id=tokens.image_token_id, spatial_merge_size=2,
    )  # fmt: skip
    return build(tf.LightOnOcrForConditionalGeneration, config), processor


def granite_docling():
    """Its decoder adds features of the tower's layers to image tokens, layer by layer."""
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    roles = ["<|start_of_role|>", "<|end_of_role|>"]
    tokens = tokenizer(
        [*roles, "<|end_of_text|>", "<fake_token_around_image>", "<global-img>", *rows], eos="<|end_of_text|>",
        image_token="<image>",
    )  # fmt: skip
    user, bot = (f"<|start_of_role|>{role}<|end_of_role|>" for role in ("user", "assistant"))
    processor = tf.GraniteDoclingProcessor(
        tf.GraniteDoclingImageProcessorPil(size={"height": 56, "width": 56}, max_patches=4), tokens, image_seq_len=4,
        chat_template=template(user, "<|end_of_text|>\n", bot, "<image>"),
    )  # fmt: skip
    vision = TOWER | {"num_hidden_layers": 3, "image_size": 56, "patch_size": 7, "out_hidden_size": WIDTH,
                      "deepstack_visual_indexes": [0, 1]}  # fmt: skip
    scales = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.6,
              "attention_multiplier": 0.2}  # fmt: skip
    config = tf.GraniteDoclingConfig(
        vision_config=vision, text_config=text("GraniteDoclingTextConfig", **scales).to_dict(),
        image_token_id=tokens.image_token_id,
    )  # fmt: skip
    return build(tf.GraniteDoclingForConditionalGeneration, config), processor


def deepseek_ocr2():
    """Its queries fit two sizes of pictures alone, of 16 and of 12 patches a side."""
    tokens = tokenizer(["<｜User｜>", "<｜Assistant｜>"], image_token="<image>")
    processor = tf.DeepseekOcr2Processor(
        tf.DeepseekOcr2ImageProcessorPil(size={"height": 192, "width": 192}, tile_size=144), tokens, patch_size=3,
        chat_template=template(
            "<｜User｜>: ", "\n\n", "<｜Assistant｜>:", "<image>\n", bos="<s>", end_of_answer="</s>"
        ),
    )  # fmt: skip
    heads = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1}  # fmt: skip
    experts = {"mlp_layer_types": ["dense", "sparse", "sparse"], "n_routed_experts": 4, "n_shared_experts": 1,
               "num_experts_per_tok": 2, "moe_intermediate_size": 32}  # fmt: skip
    config = tf.DeepseekOcr2Config(
        vision_config={
            "sam_config": _sam(image_size=192, patch_size=3, downsample_channels=[24, 32]), "encoder_config": heads
        },
        text_config=text("DeepseekOcr2TextConfig", **experts).to_dict(), image_token_id=tokens.image_token_id,
    )  # fmt: skip
    return build(tf.DeepseekOcr2ForConditionalGeneration, config, embed=1.5), processor


def minicpm_ocr():
    processor = minicpm_processor("MiniCPMOcr", tf.MiniCPMOcrImageProcessor)
    tokens = processor.tokenizer
    config = tf.MiniCPMOcrConfig(
        vision_config=TOWER | {"num_hidden_layers": 3, "image_size": 112, "patch_size": 14}, insert_layer_id=1,
        text_config=text("Qwen3_5TextConfig", **LINEAR, layer_types=HYBRID, rope_parameters=ROPE),
        image_token_id=tokens.image_token_id, video_token_id=tokens.video_token_id,
    )  # fmt: skip
    return build(tf.MiniCPMOcrForConditionalGeneration, config), processor
