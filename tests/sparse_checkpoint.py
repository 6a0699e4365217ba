"""A checkpoint of LLaVA-1.5-7B's size, 14 GB, of zeros in sparse files: headers are real, weights are holes."""

import json
import math
import struct
from pathlib import Path

TOKENIZER = Path(__file__).with_name("goldens") / "llava/instruct/tokenizer.model"
LAYERS, WIDTH, INNER, VOCABULARY = 32, 4096, 11008, 32000
VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768, "model_type": "clip_vision_model",
}  # fmt: skip


def shapes() -> dict[str, list[int]]:
    """Names and shapes of the published checkpoint, with its tower, in transformers' layout."""
    text, vision = "language_model.model.", "vision_tower.vision_model."
    found = {f"{text}embed_tokens.weight": [VOCABULARY, WIDTH], f"{text}norm.weight": [WIDTH]}
    found["language_model.lm_head.weight"] = [VOCABULARY, WIDTH]
    for layer in range(LAYERS):
        at = f"{text}layers.{layer}."
        found |= {f"{at}self_attn.{name}_proj.weight": [WIDTH, WIDTH] for name in "qkvo"}
        found |= {f"{at}mlp.{name}_proj.weight": [INNER, WIDTH] for name in ("gate", "up")}
        found[f"{at}mlp.down_proj.weight"] = [WIDTH, INNER]
        found |= {f"{at}{name}_layernorm.weight": [WIDTH] for name in ("input", "post_attention")}
    width, inner = VISION["hidden_size"], VISION["intermediate_size"]
    found[f"{vision}embeddings.class_embedding"] = [width]
    found[f"{vision}embeddings.patch_embedding.weight"] = [width, 3, 14, 14]
    found[f"{vision}embeddings.position_embedding.weight"] = [577, width]
    norms = [f"{vision}pre_layrnorm", f"{vision}post_layernorm"]
    linears = {}
    for layer in range(VISION["num_hidden_layers"]):
        at = f"{vision}encoder.layers.{layer}."
        norms += [f"{at}layer_norm1", f"{at}layer_norm2"]
        linears |= {f"{at}self_attn.{name}": [width, width] for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linears |= {f"{at}mlp.fc1": [inner, width], f"{at}mlp.fc2": [width, inner]}
    linears |= {"multi_modal_projector.linear_1": [WIDTH, width], "multi_modal_projector.linear_2": [WIDTH, WIDTH]}
    for name in norms:
        found |= {f"{name}.weight": [width], f"{name}.bias": [width]}
    for name, shape in linears.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def write_checkpoint(folder: Path, shards: int = 3) -> int:
    """A checkpoint of zeros in float16; the bytes of its weights."""
    folder.mkdir(parents=True)
    names, total, weight_map = list(shapes().items()), 0, {}
    for shard in range(shards):
        file = folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in names[shard::shards]:
            size = 2 * math.prod(shape)
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
            weight_map[name], offset = file.name, offset + size
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(file, "wb") as opened:
            opened.write(struct.pack("<Q", len(encoded)) + encoded)
            opened.truncate(8 + len(encoded) + offset)
        total += offset
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    text = {
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
    }  # fmt: skip
    config = {"model_type": "llava", "text_config": text, "vision_config": VISION}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    return total
