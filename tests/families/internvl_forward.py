"""InternVL's forward in plain formulas, fp64, straight from weights in its own layout; knows nothing of the product.

Source: modeling_intern_vit.py, modeling_internvl_chat.py and modeling_internlm2.py of InternVL's repository; the
papers of the other decoders. Shapes: N tiles, P patches, T tokens, W width, H query heads, G key heads, D head width.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu, softmax


class Reference:
    """One checkpoint, by its config.json and its tensors."""

    def __init__(self, config: dict, weights: dict[str, Tensor]) -> None:
        self.config, self.text, self.vision = config, config["llm_config"], config["vision_config"]
        self._weights = {name: value.double() for name, value in weights.items()}

    def logits(self, ids_T: Tensor, pixels: Tensor | None, image_id: int) -> Tensor:
        """[T, V]; the pixels [N, 3, S, S] of the tiles in the order of their tokens."""
        hidden_TW = self._at("language_model.model.", "embed_tokens", "tok_embeddings")[ids_T]
        if pixels is not None:
            hidden_TW[ids_T == image_id] = self.tokens(pixels)
        for number in range(self.text["num_hidden_layers"]):
            hidden_TW = self._layer(f"language_model.model.layers.{number}.", hidden_TW)
        hidden_TW = rms_norm(hidden_TW, self._weights["language_model.model.norm.weight"], self.text["rms_norm_eps"])
        return hidden_TW @ self._at("language_model.", "lm_head", "output").T

    def tokens(self, pixels: Tensor) -> Tensor:
        """What stands for the tiles in the text model [N P / 4, W]."""
        hidden = self._tower(pixels.double())[:, 1:]
        count, patches, width = hidden.shape
        half = math.isqrt(patches) // 2
        # Four patches of a square one after the other, row by row.
        squares = hidden.reshape(count, half, 2, half, 2, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4 * width)
        w = self._weights
        normed = layer_norm(squares, w["mlp1.0.weight"], w["mlp1.0.bias"], 1e-5)
        inner = gelu(normed @ w["mlp1.1.weight"].T + w["mlp1.1.bias"])
        return inner @ w["mlp1.3.weight"].T + w["mlp1.3.bias"]

    def _tower(self, pixels: Tensor) -> Tensor:
        w, patch = self._weights, self.vision["patch_size"]
        top = "vision_model.embeddings."
        rows = pixels.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        made = rows @ w[f"{top}patch_embedding.weight"].flatten(1).T + w[f"{top}patch_embedding.bias"]
        first = w[f"{top}class_embedding"].expand(len(pixels), 1, -1)
        hidden = torch.cat([first, made], 1) + w[f"{top}position_embedding"]
        for number in range(self.vision["num_hidden_layers"]):
            layer = f"vision_model.encoder.layers.{number}."
            hidden = hidden + w[f"{layer}ls1"] * self._look(layer, self._vision_norm(f"{layer}norm1", hidden))
            normed = self._vision_norm(f"{layer}norm2", hidden)
            inner = gelu(normed @ w[f"{layer}mlp.fc1.weight"].T + w[f"{layer}mlp.fc1.bias"])
            hidden = hidden + w[f"{layer}ls2"] * (inner @ w[f"{layer}mlp.fc2.weight"].T + w[f"{layer}mlp.fc2.bias"])
        return hidden

    def _vision_norm(self, name: str, hidden: Tensor) -> Tensor:
        eps = self.vision["layer_norm_eps"]
        if self.vision["norm_type"] == "rms_norm":
            return rms_norm(hidden, self._weights[f"{name}.weight"], eps)
        return layer_norm(hidden, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], eps)

    def _look(self, layer: str, hidden: Tensor) -> Tensor:
        """Attention of every patch to every other."""
        w, heads = self._weights, self.vision["num_attention_heads"]
        packed = hidden @ w[f"{layer}attn.qkv.weight"].T + w.get(f"{layer}attn.qkv.bias", 0)
        queries, keys, values = packed.split(hidden.shape[-1], -1)
        if self.vision["qk_normalization"]:
            eps = self.vision["layer_norm_eps"]
            queries = rms_norm(queries, w[f"{layer}attn.q_norm.weight"], eps)
            keys = rms_norm(keys, w[f"{layer}attn.k_norm.weight"], eps)
        queries, keys, values = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (queries, keys, values))
        chances = softmax(queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1]), -1)
        seen = (chances @ values).transpose(1, 2).flatten(2)
        return seen @ w[f"{layer}attn.proj.weight"].T + w[f"{layer}attn.proj.bias"]

    def _layer(self, layer: str, hidden_TW: Tensor) -> Tensor:
        eps = self.text["rms_norm_eps"]
        first = self._at(layer, "input_layernorm", "attention_norm")
        second = self._at(layer, "post_attention_layernorm", "ffn_norm")
        hidden_TW = hidden_TW + self._attend(layer, rms_norm(hidden_TW, first, eps))
        return hidden_TW + self._feed(layer, rms_norm(hidden_TW, second, eps))

    def _attend(self, layer: str, hidden_TW: Tensor) -> Tensor:
        heads, groups = self.text["num_attention_heads"], self.text["num_key_value_heads"]
        queries_THD, keys_TGD, values_TGD = self._projected(layer, hidden_TW, heads, groups)
        if self.text["model_type"].startswith("qwen3"):
            eps = self.text["rms_norm_eps"]
            queries_THD = rms_norm(queries_THD, self._weights[f"{layer}self_attn.q_norm.weight"], eps)
            keys_TGD = rms_norm(keys_TGD, self._weights[f"{layer}self_attn.k_norm.weight"], eps)
        queries_THD, keys_TGD = self._turned(queries_THD), self._turned(keys_TGD)
        length = len(hidden_TW)
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        seen = []
        for head in range(heads):
            group = head * groups // heads
            scores = queries_THD[:, head] @ keys_TGD[:, group].T / math.sqrt(queries_THD.shape[-1])
            seen.append(softmax(scores.masked_fill(ahead, -torch.inf), -1) @ values_TGD[:, group])
        return torch.cat(seen, -1) @ self._at(layer, "self_attn.o_proj", "attention.wo").T

    def _projected(self, layer: str, hidden_TW: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        w, kind = self._weights, self.text["model_type"]
        if kind == "internlm2":
            packed = hidden_TW @ w[f"{layer}attention.wqkv.weight"].T
            each, width = heads // groups, packed.shape[-1] // (heads + 2 * groups)
            found = {"q": [], "k": [], "v": []}
            for group in range(groups):
                start = group * (each + 2) * width
                blocks = packed[:, start : start + (each + 2) * width].split(width, -1)
                found["q"] += blocks[:each]
                found["k"].append(blocks[each])
                found["v"].append(blocks[each + 1])
            return tuple(torch.stack(blocks, 1) for blocks in found.values())
        if kind == "phi3":
            packed = hidden_TW @ w[f"{layer}self_attn.qkv_proj.weight"].T
            blocks = packed.unflatten(-1, (heads + 2 * groups, -1))
            return blocks.split([heads, groups, groups], 1)
        rows = (hidden_TW @ w[f"{layer}self_attn.{one}_proj.weight"].T + w.get(f"{layer}self_attn.{one}_proj.bias", 0)
                for one in "qkv")  # fmt: skip
        return tuple(one.unflatten(-1, (count, -1)) for one, count in zip(rows, (heads, groups, groups), strict=True))

    def _turned(self, states: Tensor) -> Tensor:
        """Rotary position: the first half of a head's numbers with the second, as the angles of complex ones."""
        length, _, width = states.shape
        speeds = self.text["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        scale = 1.0
        if self.text["model_type"] == "phi3":
            original, most = self.text["original_max_position_embeddings"], self.text["max_position_embeddings"]
            assert length <= original
            speeds = speeds / torch.tensor(self.text["rope_scaling"]["short_factor"], dtype=torch.float64)
            scale = math.sqrt(1 + math.log(most / original) / math.log(original))
        angles = torch.arange(length, dtype=torch.float64)[:, None, None] * speeds
        first, second = states.chunk(2, -1)
        turned = torch.complex(first, second) * torch.polar(torch.full_like(angles, scale), angles)
        return torch.cat([turned.real, turned.imag], -1)

    def _feed(self, layer: str, hidden_TW: Tensor) -> Tensor:
        w, kind = self._weights, self.text["model_type"]
        if kind == "qwen3_moe":
            return self._experts(f"{layer}mlp.", hidden_TW)
        if kind == "internlm2":
            names = [f"{layer}feed_forward.{one}.weight" for one in ("w1", "w3", "w2")]
            return feed(hidden_TW, *(w[name] for name in names))
        if kind == "phi3":
            return feed(hidden_TW, *w[f"{layer}mlp.gate_up_proj.weight"].chunk(2), w[f"{layer}mlp.down_proj.weight"])
        return feed(hidden_TW, *(w[f"{layer}mlp.{one}_proj.weight"] for one in ("gate", "up", "down")))

    def _experts(self, top: str, hidden_TW: Tensor) -> Tensor:
        chances, chosen = softmax(hidden_TW @ self._weights[f"{top}gate.weight"].T, -1).topk(
            self.text["num_experts_per_tok"], -1
        )
        if self.text["norm_topk_prob"]:
            chances = chances / chances.sum(-1, keepdim=True)
        made = torch.zeros_like(hidden_TW)
        for token, (weights, numbers) in enumerate(zip(chances, chosen.tolist(), strict=True)):
            for weight, number in zip(weights, numbers, strict=True):
                parts = (self._weights[f"{top}experts.{number}.{one}_proj.weight"] for one in ("gate", "up", "down"))
                made[token] += weight * feed(hidden_TW[token], *parts)
        return made

    def _at(self, top: str, usual: str, internlm2: str) -> Tensor:
        name = internlm2 if self.text["model_type"] == "internlm2" else usual
        return self._weights[f"{top}{name}.weight"]


def feed(hidden: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (silu(hidden @ gate.T) * (hidden @ up.T)) @ down.T


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return hidden / (hidden.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias
