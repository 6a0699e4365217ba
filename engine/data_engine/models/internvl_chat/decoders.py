"""The text decoders of InternVL's own layout: the class of transformers for each, and where its weights go.

Shapes: H query heads, G key/value heads, D head width, W model width, I width of the feed-forward layer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import LlamaConfig, Phi3Config, PreTrainedConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig


@dataclass(frozen=True)
class Target:
    """A parameter of transformers' model, or a part of it."""

    name: str
    expert: int | None = None
    """of a parameter that holds all experts"""
    rows: tuple[int, int] | None = None
    """from and to, of that expert's; None for all"""

    @property
    def index(self) -> tuple[int | slice, ...]:
        """Of the part; nothing for the whole parameter."""
        if self.expert is None:
            return ()
        return (self.expert, slice(None) if self.rows is None else slice(*self.rows))


@dataclass(frozen=True)
class Placing:
    """Where a stored tensor goes."""

    targets: tuple[Target, ...]
    split: Callable[[Tensor], Sequence[Tensor]] | None = None
    """its parts along the first dimension in the order of the targets; None for the whole tensor to one target"""


@dataclass(frozen=True)
class Decoder:
    """One kind of text decoder."""

    config: type[PreTrainedConfig]
    fields: tuple[str, ...] = ()
    """of llm_config, besides COMMON, that say what the decoder computes"""
    place: Callable[[str, PreTrainedConfig], Placing] | None = None
    """where a weight goes that transformers stores elsewhere, by its name behind `language_model.`; else None"""
    names_all: bool = False
    """`place` knows every weight of the decoder: what it does not know is none of it"""


COMMON = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "vocab_size", "rope_theta", "rope_scaling",
    "rope_parameters", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_WINDOWS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
_EXPERTS = (
    "num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step", "norm_topk_prob",
    "mlp_only_layers",
)  # fmt: skip

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_INTERNLM2_LAYER = {
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_INTERNLM2_OTHERS = {
    "model.tok_embeddings.weight": "model.language_model.embed_tokens.weight",
    "model.norm.weight": "model.language_model.norm.weight",
    "output.weight": "lm_head.weight",
}
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")


def _internlm2(name: str, config: PreTrainedConfig) -> Placing | None:
    if name in _INTERNLM2_OTHERS:
        return Placing((Target(_INTERNLM2_OTHERS[name]),))
    found = _LAYER.fullmatch(name)
    if found is None:
        return None
    layer, part = f"model.language_model.layers.{found[1]}", found[2]
    if part == "attention.wqkv.weight":
        names = (f"{layer}.self_attn.{one}_proj.weight" for one in "qkv")
        return Placing(tuple(map(Target, names)), lambda value: split_grouped(value, config))
    return Placing((Target(f"{layer}.{_INTERNLM2_LAYER[part]}"),)) if part in _INTERNLM2_LAYER else None


def split_grouped(wqkv: Tensor, config: PreTrainedConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of queries [H D, W], keys and values [G D, W] from InternLM2's one of [G (H / G + 2) D, W].

    Each of its G groups has the heads of its queries, then a key and a value. Source: InternLM2Attention.forward of
    InternVL's repository.
    """
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    each = heads // groups
    grouped = wqkv.unflatten(0, (groups, each + 2, width))
    parts = grouped[:, :each], grouped[:, each], grouped[:, each + 1]
    return tuple(part.reshape(-1, wqkv.shape[-1]) for part in parts)


def _qwen3_moe(name: str, config: PreTrainedConfig) -> Placing | None:
    """Experts, which transformers keeps together: gates and ups [E, 2 I, W], downs [E, W, I]."""
    found = _LAYER.fullmatch(name)
    expert = found and _EXPERT.fullmatch(found[2])
    if not expert:
        return None
    number, kind = int(expert[1]), expert[2]
    experts = f"model.language_model.layers.{found[1]}.mlp.experts"
    if kind == "down":
        return Placing((Target(f"{experts}.down_proj", number),))
    width = config.moe_intermediate_size
    rows = (0, width) if kind == "gate" else (width, 2 * width)
    return Placing((Target(f"{experts}.gate_up_proj", number, rows),))


# By the first of llm_config's architectures.
DECODERS: Mapping[str, Decoder] = {
    "InternLM2ForCausalLM": Decoder(LlamaConfig, (), _internlm2, names_all=True),
    # LLaMA's but for biases, which no published one has.
    "InternLM3ForCausalLM": Decoder(LlamaConfig),
    "LlamaForCausalLM": Decoder(LlamaConfig, ("attention_bias", "mlp_bias")),
    "Qwen2ForCausalLM": Decoder(Qwen2Config, _WINDOWS),
    "Qwen3ForCausalLM": Decoder(Qwen3Config, ("attention_bias", *_WINDOWS)),
    "Qwen3MoeForCausalLM": Decoder(Qwen3MoeConfig, ("attention_bias", *_EXPERTS, *_WINDOWS), _qwen3_moe),
    "Phi3ForCausalLM": Decoder(
        Phi3Config, ("original_max_position_embeddings", "partial_rotary_factor", "sliding_window")
    ),
}
