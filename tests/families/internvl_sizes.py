"""The published models in InternVL's own layout: the fields of config.json that make their size, and their counts.

Fields: those that the makers of each text decoder publish, with the vocabulary of the InternVL that was made of it.
Counts, in billions: of 2 and 2.5 the report arXiv:2412.05271, table 2, and the hub's pages of 1B ("938M") and 8B
("8.08B"), but InternVL2-4B's from arXiv:2412.10302, since the report has 4.2; of 3 the report arXiv:2504.10479, table
1, but 8B's from its weight files on the hub, 15.89 GB in bfloat16, since the report has 8.1; of 3.5 the table in the
README of InternVL's repository. InternVL3-2B's is without its head, which the report does not count.
Imports nothing of the product.
"""

from dataclasses import dataclass

from internvl_folders import ARCHITECTURES, TEMPLATES

SMALL_TOWER = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "qk_normalization": False, "qkv_bias": True, "norm_type": "layer_norm",
}  # fmt: skip
# InternViT-6B-448px-V1-2 and later, without the last three of its 48 layers.
LARGE_TOWER = {
    "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 45, "num_attention_heads": 25,
    "qk_normalization": True, "qkv_bias": False, "norm_type": "rms_norm",
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One size of one generation."""

    kind: str
    """of the decoder"""
    sizes: tuple[int, ...]
    """width, feed-forward width, layers, query heads, key heads, vocabulary"""
    count: str
    """of all parameters as published, in billions, as many digits as there"""
    large: bool = False
    """has the tower of 6B"""
    experts: tuple[int, int] | None = None
    """how many, and their width"""
    with_head: bool = True
    """whether the published count has the weights of the head"""

    def config(self) -> dict:
        width, inner, layers, heads, groups, vocabulary = self.sizes
        text = {
            "architectures": [ARCHITECTURES[self.kind]], "model_type": self.kind, "hidden_size": width,
            "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": groups, "vocab_size": vocabulary, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "max_position_embeddings": 32768, "rope_theta": 1000000.0,
        }  # fmt: skip
        if self.kind.startswith("qwen3"):
            text["head_dim"] = 128
        if self.experts is not None:
            text |= {"num_experts": self.experts[0], "moe_intermediate_size": self.experts[1], "num_experts_per_tok": 8,
                     "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}  # fmt: skip
        vision = {"image_size": 448, "patch_size": 14, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
        return {
            "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "downsample_ratio": 0.5,
            "dynamic_image_size": True, "force_image_size": 448, "llm_config": text, "max_dynamic_patch": 12,
            "min_dynamic_patch": 1, "ps_version": "v2", "select_layer": -1, "template": TEMPLATES[self.kind],
            "use_thumbnail": True, "vision_config": vision | (LARGE_TOWER if self.large else SMALL_TOWER),
        }  # fmt: skip


QWEN_HALF, QWEN_3, QWEN_32 = (896, 4864, 24, 14, 2), (2048, 11008, 36, 16, 2), (5120, 27648, 64, 40, 8)
QWEN_72 = (8192, 29568, 80, 64, 8)
INTERNLM_2, INTERNLM_7 = (2048, 8192, 24, 16, 8, 92553), (4096, 14336, 32, 32, 8, 92553)
INTERNLM_20 = (6144, 16384, 48, 48, 8, 92553)

PUBLISHED = {
    "Mini-InternVL-Chat-2B-V1-5": Published("internlm2", INTERNLM_2, "2.2"),
    "InternVL-Chat-V1-5": Published("internlm2", INTERNLM_20, "25.5", large=True),
    "InternVL2-1B": Published("qwen2", (*QWEN_HALF, 151655), "0.9"),
    "InternVL2-2B": Published("internlm2", INTERNLM_2, "2.2"),
    "InternVL2-4B": Published("phi3", (3072, 8192, 32, 32, 32, 32020), "4.1"),
    "InternVL2-8B": Published("internlm2", INTERNLM_7, "8.08"),
    "InternVL2-26B": Published("internlm2", INTERNLM_20, "25.5", large=True),
    "InternVL2-40B": Published("llama", (7168, 20480, 60, 56, 8, 64009), "40.1", large=True),
    "InternVL2-Llama3-76B": Published("llama", (8192, 28672, 80, 64, 8, 128265), "76.3", large=True),
    "InternVL2_5-1B": Published("qwen2", (*QWEN_HALF, 151674), "0.938"),
    "InternVL2_5-2B": Published("internlm2", INTERNLM_2, "2.2"),
    "InternVL2_5-4B": Published("qwen2", (*QWEN_3, 151674), "3.7"),
    "InternVL2_5-8B": Published("internlm2", INTERNLM_7, "8.08"),
    "InternVL2_5-26B": Published("internlm2", INTERNLM_20, "25.5", large=True),
    "InternVL2_5-38B": Published("qwen2", (*QWEN_32, 151674), "38.4", large=True),
    "InternVL2_5-78B": Published("qwen2", (*QWEN_72, 151674), "78.4", large=True),
    "InternVL3-1B": Published("qwen2", (*QWEN_HALF, 151674), "0.9"),
    "InternVL3-2B": Published("qwen2", (1536, 8960, 28, 12, 2, 151674), "1.9", with_head=False),
    "InternVL3-8B": Published("qwen2", (3584, 18944, 28, 28, 4, 151674), "7.94"),
    "InternVL3-14B": Published("qwen2", (5120, 13824, 48, 40, 8, 151674), "15.1"),
    "InternVL3-38B": Published("qwen2", (*QWEN_32, 151674), "38.4", large=True),
    "InternVL3-78B": Published("qwen2", (*QWEN_72, 151674), "78.4", large=True),
    "InternVL3_5-1B": Published("qwen3", (1024, 3072, 28, 16, 8, 151936), "1.1"),
    "InternVL3_5-2B": Published("qwen3", (2048, 6144, 28, 16, 8, 151936), "2.3"),
    "InternVL3_5-4B": Published("qwen3", (2560, 9728, 36, 32, 8, 151936), "4.7"),
    "InternVL3_5-8B": Published("qwen3", (4096, 12288, 36, 32, 8, 151936), "8.5"),
    "InternVL3_5-14B": Published("qwen3", (5120, 17408, 40, 40, 8, 151936), "15.1"),
    "InternVL3_5-38B": Published("qwen3", (5120, 25600, 64, 64, 8, 151936), "38.4", large=True),
    "InternVL3_5-30B-A3B": Published("qwen3_moe", (2048, 6144, 48, 32, 4, 151936), "30.8", experts=(128, 768)),
    "InternVL3_5-241B-A28B": Published(
        "qwen3_moe", (4096, 12288, 94, 64, 4, 151936), "240.7", large=True, experts=(128, 1536)
    ),
}
