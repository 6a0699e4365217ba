"""Tiny checkpoints in InternVL's own layout, model_type internvl_chat: names and shapes as published, written by hand.

The files of a folder of OpenGVLab's: config.json with auto_map, conversation.py, weights by InternVL's names, tokenizer
without a tokenizer.json, preprocessor_config.json of CLIP's kind, no processor_config.json. Imports nothing of the
product.
"""

import json
from pathlib import Path

import torch
from internvl_tokenizers import write_json, write_tokenizer
from safetensors.torch import save_file

# Of the text model; 64 is no multiple of the 3 x 24 that heads wider than the model would make.
WIDTH, INNER, LAYERS, HEADS, GROUPS, HEAD = 64, 96, 2, 4, 2, 16
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TILE, PATCH, EXPERTS, EXPERT_WIDTH = 28, 7, 4, 24
ARCHITECTURES = {
    "internlm2": "InternLM2ForCausalLM", "internlm3": "InternLM3ForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM", "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
}  # fmt: skip
TEMPLATES = {"internlm2": "internlm2-chat", "phi3": "phi3-chat", "llama": "Hermes-2", "qwen2": "internvl2_5",
             "qwen3": "internvl2_5", "qwen3_moe": "internvl2_5", "internlm3": "internvl2_5"}  # fmt: skip
# By generation, the system texts of its conversation.py.
EARLIER = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
LATER = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
SYSTEMS = {
    "1.5": {"internlm2-chat": "You are an AI assistant whose name is InternLM (书生·浦语).",
            "phi3-chat": "You are an AI assistant whose name is Phi-3."},
    "2.5": {"Hermes-2": EARLIER, "internlm2-chat": EARLIER, "phi3-chat": EARLIER, "internvl2_5": LATER},
}  # fmt: skip
LONGROPE = {"type": "su", "short_factor": [1.0 + 0.05 * n for n in range(HEAD // 2)],
            "long_factor": [2.0 + n for n in range(HEAD // 2)]}  # fmt: skip


def write(folder: Path, kind: str, seed: int = 0, wide_vision: bool = False) -> Path:
    """A checkpoint with this decoder; `wide_vision`: the tower of the 6B, with normed queries and RMSNorm."""
    folder.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(folder, kind)
    config = config_of(kind, size, wide_vision)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", {
        "crop_size": TILE, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "size": TILE,
    })  # fmt: skip
    write_conversations(folder)
    write_json(folder / "generation_config.json", {"_from_model_config": True, "transformers_version": "4.37.2"})
    save_file(weights_of(config, seed), folder / "model.safetensors", {"format": "pt"})
    return folder


def write_conversations(folder: Path, generation: str = "2.5") -> None:
    """conversation.py, whose formats are calls with literals; it is never to be run."""
    calls = ""
    for name, system in SYSTEMS[generation].items():
        first, end = ("<|{}|>\\n", "<|end|>") if name == "phi3-chat" else ("<|im_start|>{}\\n", "<|im_end|>")
        end += "\\n" * (name == "internvl2_5")
        calls += (
            f"\nregister_conv_template(\n    Conversation(\n        name='{name}',\n"
            f"        system_template='{first.format('system')}{{system_message}}',\n"
            f"        # A remark: system_message='not this one',\n        system_message='{system}',\n"
            f"        roles=('{first.format('user')}', '{first.format('assistant')}'),\n"
            f"        sep_style=SeparatorStyle.MPT,\n        sep='{end}',\n        stop_token_ids=[\n            2,\n"
            "        ]\n    )\n)\n"
        )
    (folder / "conversation.py").write_text(f"raise SystemExit('remote code was run')\n{calls}", encoding="utf-8")


def change(folder: Path, **fields: object) -> None:
    """Set fields of config.json; `llm_config__vocab_size` is one of llm_config. None removes it."""
    path = folder / "config.json"
    told = json.loads(path.read_text())
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        into = told[section] if section else told
        into.pop(field, None)
        into |= {} if value is None else {field: value}
    write_json(path, told)


def config_of(kind: str, vocabulary: int, wide_vision: bool = False) -> dict:
    text = {
        "architectures": [ARCHITECTURES[kind]], "model_type": kind, "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS,
        "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": vocabulary,
        "rope_theta": 10000.0, "attn_implementation": "flash_attention_2", "use_cache": False,
        "torch_dtype": "bfloat16", "return_dict": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "transformers_version": "4.37.2",
    }  # fmt: skip
    norms = {"qk_normalization": wide_vision, "qkv_bias": not wide_vision,
             "norm_type": "rms_norm" if wide_vision else "layer_norm"}  # fmt: skip
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        },
        "model_type": "internvl_chat", "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": TILE,
        "llm_config": text | _peculiar(kind), "max_dynamic_patch": 4, "min_dynamic_patch": 1, "pad2square": False,
        "ps_version": "v2", "select_layer": -1, "template": TEMPLATES[kind], "torch_dtype": "bfloat16",
        "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": True,
        "vision_config": {
            **VISION, **norms, "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b",
            "image_size": TILE, "patch_size": PATCH, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
            "use_flash_attn": True, "drop_path_rate": 0.1, "attention_dropout": 0.0,
        },
    }  # fmt: skip


def _peculiar(kind: str) -> dict:
    """Fields of llm_config that this decoder has besides those of all."""
    return {
        "internlm2": {"bias": False, "rope_scaling": {"factor": 2.0, "type": "dynamic"}},
        "internlm3": {
            "bias": False, "qkv_bias": False, "head_dim": HEAD,
            "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
        },
        "qwen2": {
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "sliding_window": None,
            "use_sliding_window": False, "max_window_layers": 70, "moe_config": None,
        },
        "qwen3": {"head_dim": 24, "attention_bias": False, "sliding_window": None, "use_sliding_window": False},
        "qwen3_moe": {
            "head_dim": 24, "attention_bias": False, "sliding_window": None, "num_experts": EXPERTS,
            "num_experts_per_tok": 2, "moe_intermediate_size": EXPERT_WIDTH, "decoder_sparse_step": 1,
            "norm_topk_prob": True, "mlp_only_layers": [],
        },
        "llama": {"attention_bias": False},
        "phi3": {
            "rope_scaling": LONGROPE, "original_max_position_embeddings": 2048, "sliding_window": 262144,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        },
    }[kind]  # fmt: skip


def shapes_of(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of InternVL's modules, of any size."""
    return {**_tower_shapes(config["vision_config"]), **_bridge_shapes(config), **_text_shapes(config["llm_config"])}


def _tower_shapes(vision: dict) -> dict[str, tuple[int, ...]]:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    places = (vision["image_size"] // patch) ** 2 + 1
    top = "vision_model.embeddings."
    found = {
        f"{top}class_embedding": (1, 1, width), f"{top}position_embedding": (1, places, width),
        f"{top}patch_embedding.weight": (width, 3, patch, patch), f"{top}patch_embedding.bias": (width,),
    }  # fmt: skip
    each = {
        "attn.qkv.weight": (3 * width, width), "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "mlp.fc1.weight": (inner, width), "mlp.fc1.bias": (inner,), "mlp.fc2.weight": (width, inner),
        "mlp.fc2.bias": (width,), "norm1.weight": (width,), "norm2.weight": (width,), "ls1": (width,), "ls2": (width,),
    }  # fmt: skip
    if vision["qkv_bias"]:
        each["attn.qkv.bias"] = (3 * width,)
    if vision["qk_normalization"]:
        each |= {"attn.q_norm.weight": (width,), "attn.k_norm.weight": (width,)}
    if vision["norm_type"] == "layer_norm":
        each |= {"norm1.bias": (width,), "norm2.bias": (width,)}
    layers = range(vision["num_hidden_layers"])
    return found | {f"vision_model.encoder.layers.{n}.{name}": shape for n in layers for name, shape in each.items()}


def _bridge_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    four, width = 4 * config["vision_config"]["hidden_size"], config["llm_config"]["hidden_size"]
    return {
        "mlp1.0.weight": (four,), "mlp1.0.bias": (four,), "mlp1.1.weight": (width, four), "mlp1.1.bias": (width,),
        "mlp1.3.weight": (width, width), "mlp1.3.bias": (width,),
    }  # fmt: skip


def _text_shapes(text: dict) -> dict[str, tuple[int, ...]]:
    kind, width, vocabulary = text["model_type"], text["hidden_size"], text["vocab_size"]
    internlm2 = kind == "internlm2"
    layer = {"internlm2": _internlm2_layer, "phi3": _phi3_layer}.get(kind, _plain_layer)(text)
    names = range(text["num_hidden_layers"])
    return {
        f"language_model.model.{'tok_embeddings' if internlm2 else 'embed_tokens'}.weight": (vocabulary, width),
        "language_model.model.norm.weight": (width,),
        f"language_model.{'output' if internlm2 else 'lm_head'}.weight": (vocabulary, width),
    } | {f"language_model.model.layers.{n}.{name}": shape for n in names for name, shape in layer.items()}


def _sizes(text: dict) -> tuple[int, int, int, int]:
    """Width, feed-forward width, and rows of the queries and of the keys."""
    width, heads = text["hidden_size"], text["num_attention_heads"]
    head = text.get("head_dim") or width // heads
    return width, text["intermediate_size"], heads * head, text["num_key_value_heads"] * head


def _internlm2_layer(text: dict) -> dict[str, tuple[int, ...]]:
    width, inner, queries, keys = _sizes(text)
    return {
        "attention.wqkv.weight": (queries + 2 * keys, width), "attention.wo.weight": (width, queries),
        "feed_forward.w1.weight": (inner, width), "feed_forward.w3.weight": (inner, width),
        "feed_forward.w2.weight": (width, inner), "attention_norm.weight": (width,), "ffn_norm.weight": (width,),
    }  # fmt: skip


def _phi3_layer(text: dict) -> dict[str, tuple[int, ...]]:
    width, inner, queries, keys = _sizes(text)
    return {
        "self_attn.qkv_proj.weight": (queries + 2 * keys, width), "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_up_proj.weight": (2 * inner, width), "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
    }  # fmt: skip


def _plain_layer(text: dict) -> dict[str, tuple[int, ...]]:
    width, inner, queries, keys = _sizes(text)
    kind = text["model_type"]
    rows = {"q": queries, "k": keys, "v": keys}
    found = {f"self_attn.{name}_proj.weight": (count, width) for name, count in rows.items()}
    found |= {"self_attn.o_proj.weight": (width, queries), "input_layernorm.weight": (width,),
              "post_attention_layernorm.weight": (width,)}  # fmt: skip
    if kind == "qwen2":
        found |= {f"self_attn.{name}_proj.bias": (count,) for name, count in rows.items()}
    if kind.startswith("qwen3"):
        head = keys // text["num_key_value_heads"]
        found |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    if kind != "qwen3_moe":
        return found | _feed_forward("mlp.", width, inner)
    found["mlp.gate.weight"] = (text["num_experts"], width)
    for number in range(text["num_experts"]):
        found |= _feed_forward(f"mlp.experts.{number}.", width, text["moe_intermediate_size"])
    return found


def _feed_forward(top: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{top}gate_proj.weight": (inner, width), f"{top}up_proj.weight": (inner, width),
            f"{top}down_proj.weight": (width, inner)}  # fmt: skip


def weights_of(config: dict, seed: int) -> dict[str, torch.Tensor]:
    """Large enough that each weight moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes_of(config).items():
        value = torch.randn(shape, generator=generator)
        if "norm" in name or name.startswith("mlp1.0.w"):
            value = 1 + 0.2 * value
        elif name.endswith(("ls1", "ls2")):
            value = 0.5 + 0.2 * value
        elif len(shape) == 2:
            value = value * (0.5 if "embed" in name else 1.2 / shape[-1] ** 0.5)
        else:
            value = 0.2 * value
        found[name] = value.contiguous()
    return found
