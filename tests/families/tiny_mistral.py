"""Tiny checkpoints of Mistral's models with latent attention behind Pixtral's tower, and their reasoning template."""

import transformers as tf
from tiny_parts import TOWER, build, template, text, tokenizer
from torch import nn

# As published, values are as wide as keys: those are 8 numbers that are turned, and 16 that are not.
LATENT = {
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 24, "num_key_value_heads": 4,
    "head_dim": 24,
}  # fmt: skip
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Shorter than the prompts, so that tables and queries that are scaled from there on matter.
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 32,
        "beta_fast": 32.0, "beta_slow": 1.0}  # fmt: skip


def _processor():
    tokens = tokenizer(["[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", "[THINK]", "[/THINK]"], image_token="[IMG]")
    return tf.PixtralProcessor(
        tf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14}), tokens,
        patch_size=14, spatial_merge_size=2,
        chat_template=template("[INST]", "[/INST]", "", "[IMG]", bos="<s>", end_of_answer="</s>"),
    )  # fmt: skip


def _config(kind, processor, text_config):
    return getattr(tf, f"{kind}Config")(
        vision_config=tf.PixtralVisionConfig(**TOWER, image_size=112, patch_size=14), text_config=text_config,
        image_token_index=processor.tokenizer.image_token_id, spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip


def mistral4():
    """Mistral 3's model around another text model."""
    processor = _processor()
    rope = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}
    more = LATENT | EXPERTS | {"q_lora_rank": 24, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
    text_config = text("Mistral4Config", rope_parameters=rope, **more)
    return build(tf.Mistral3ForConditionalGeneration, _config("Mistral3", processor, text_config)), processor


def mistral_large4():
    """Each token attends to 16 keys of its choice; the second layer has the keys and the choice of the first one."""
    processor = _processor()
    rope = YARN | {"attention_factor": 1.0}
    index = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 8, "no_rope_layers": [1, 1, 0],
             "indexer_types": ["full", "shared", "full"], "kv_source_layers": [0, 0, 2]}  # fmt: skip
    more = LATENT | EXPERTS | index | {"n_shared_experts": 1}
    text_config = text("MistralLarge4TextConfig", rope_parameters=rope, **more)
    model = build(tf.MistralLarge4ForConditionalGeneration, _config("MistralLarge4", processor, text_config))
    for name, weight in model.named_parameters():
        if "softmax_scaling" in name:
            # Zero or not set in a new model.
            nn.init.constant_(weight, 0.5 if name.endswith("bias") else 0.1)
    return model, processor
