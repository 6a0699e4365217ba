"""Tiny checkpoints of families whose layers choose the keys that a token sees, by an index of their own."""

import transformers as tf
from tiny_mrope import EXPERTS, GLM_TOWER, LINEAR, QWEN, ROPE, TOWER_3_5
from tiny_parts import TOWER, build, chatml, ids, still, template, text, tokenizer

# Of an index. Of few, none may find anything in some keys, and between equal ones each pass would choose for itself.
HEADS = 16
SIZES = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}}


def minimax_m3_vl():
    marks = [f"]<]{mark}[>[" for mark in ("image", "video", "start of image", "end of image")]
    tokens = tokenizer([*marks, "]~b]", "[e~["])
    processor = tf.MiniMaxM3VLProcessor(
        tf.MiniMaxM3VLImageProcessor(**SIZES), tokens, tf.MiniMaxM3VLVideoProcessor(),
        chat_template=template("]~b]user\n", "[e~[\n", "]~b]ai\n", "]<]image[>["),
    )  # fmt: skip
    # Fewer blocks of keys than the prompts have.
    indexed = {
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"], "index_n_heads": 2,
        "index_head_dim": 8, "index_block_size": 8, "index_topk_blocks": 2, "rotary_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    }  # fmt: skip
    experts = {"mlp_layer_types": ["dense", "sparse", "sparse"], "num_local_experts": 4, "num_experts_per_tok": 2,
               "dense_intermediate_size": 96, "shared_intermediate_size": 32, "intermediate_size": 32}  # fmt: skip
    image, video = ids(tokens, *marks[:2])
    config = tf.MiniMaxM3VLConfig(
        vision_config=TOWER | {"image_size": 112, "patch_size": 14}, image_token_index=image, video_token_index=video,
        text_config=text("MiniMaxM3VLTextConfig", **indexed, **experts).to_dict(), projector_hidden_size=48,
    )  # fmt: skip
    return build(tf.MiniMaxM3SparseForConditionalGeneration, config), processor


def qwen4_exp():
    """A state from token to token in most layers, and several streams of hidden states."""
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", **QWEN)
    processor = still(tf.Qwen3VLProcessor)(
        tf.Qwen2VLImageProcessorPil(**SIZES, patch_size=16, merge_size=2, temporal_patch_size=2), tokens,
        chat_template=chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    indexed = {
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention", "indexed_attention"],
        "num_hidden_layers": 4, "indexer_n_heads": HEADS, "indexer_kv_heads": 1, "indexer_head_dim": 16,
        "indexer_budget": 16, "indexer_compress_ratio": 4, "hc_count": 2, "hc_lowrank": 8,
    }  # fmt: skip
    # Embeddings of a token together with those before it, looked up by layer.
    ngrams = {"ple_layer_ids": [3], "ple_embed_dim": 32, "heads_per_ngram": 2, "ngram_vocab_size_base": 50,
              "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 2}  # fmt: skip
    experts = EXPERTS | {"shared_expert_intermediate_size": 32}
    start, end = ids(tokens, "<|vision_start|>", "<|vision_end|>")
    config = tf.Qwen4ExpConfig(
        vision_config=TOWER_3_5, image_token_id=tokens.image_token_id, video_token_id=tokens.video_token_id,
        vision_start_token_id=start, vision_end_token_id=end,
        text_config=text(
            "Qwen4ExpTextConfig", rope_parameters=ROPE, **indexed, **ngrams, **experts, **LINEAR
        ).to_dict(),
    )  # fmt: skip
    model = build(tf.Qwen4ExpForConditionalGeneration, config)
    # Logits as large as those of the other heads: the mean of its streams is smaller than a stream.
    model.lm_head.weight.data.mul_(2)
    return model, processor


def glm5_next():
    """A state from token to token in most layers, latent attention in the others, no positions."""
    marks = [f"<|{begin}_of_{what}|>" for what in ("image", "video") for begin in ("begin", "end")]
    tokens = tokenizer(
        ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<think>", "</think>", *marks], image_token="<|image|>",
        video_token="<|video|>", eos="<|endoftext|>",
    )  # fmt: skip
    processor = still(tf.Glm5NextProcessor)(
        tf.Glm5NextImageProcessorPil(**SIZES), tokens,
        chat_template=template(
            "<|user|>", "", "<|assistant|><think>", "<|begin_of_image|><|image|><|end_of_image|>", bos="[gMASK]<sop>"
        ),
    )  # fmt: skip
    indexed = {
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention", "indexed_attention"],
        "num_hidden_layers": 4, "index_topk": 16, "index_head_dim": 8, "index_n_heads": HEADS, "index_kpool": 4,
        "linear_head_dim": 16, "linear_num_heads": 4, "hc_mult": 2, "hc_sinkhorn_iters": 4,
    }  # fmt: skip
    latent = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "v_head_dim": 12,
              "num_key_value_heads": 4}  # fmt: skip
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
               "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}  # fmt: skip
    names = [f"{what}_{begin}_token_id" for what in ("image", "video") for begin in ("start", "end")]
    config = tf.Glm5NextConfig(
        vision_config=GLM_TOWER | {"projection_intermediate_size": 48}, image_token_id=tokens.image_token_id,
        text_config=text("Glm5NextTextConfig", **indexed, **latent, **experts).to_dict(),
        video_token_id=tokens.video_token_id, **dict(zip(names, ids(tokens, *marks), strict=True)),
    )  # fmt: skip
    return build(tf.Glm5NextForConditionalGeneration, config), processor
