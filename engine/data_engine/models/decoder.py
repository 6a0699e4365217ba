"""What all families' decoders share: transformers' configuration from a config.json, cache size, output weights."""

from pathlib import Path

from torch import Tensor, nn
from transformers import PretrainedConfig

from data_engine.models.registry import ModelError


def decoder_config(kind: type[PretrainedConfig], raw: dict, where: Path, types: tuple[str, ...]) -> PretrainedConfig:
    """The decoder that `raw`, of the file `where`, describes; its model_type, if given, must be one of `types`.

    Raises ModelError for another type, or fields that transformers refuses.
    """
    if raw.get("model_type", kind.model_type) not in (kind.model_type, *types):
        raise ModelError(f"{where} has a decoder of type {raw['model_type']!r}; this family supports {kind.model_type}")
    fields = {key: value for key, value in raw.items() if key not in ("model_type", "architectures", "torch_dtype")}
    try:
        return kind.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where} does not describe a {kind.model_type} decoder: {error}") from error


def head_width(config: PretrainedConfig) -> int:
    """Numbers of one token in one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def cache_values_per_token(config: PretrainedConfig) -> int:
    """Numbers that one token keeps in the key/value cache, all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_width(config)


def head_weight(modules: nn.Module) -> Tensor:
    """[V, D]: those of `modules.head`, or the token embeddings where config.json ties the two and there is no head."""
    return modules.head.weight if hasattr(modules, "head") else modules.decoder.embed_tokens.weight
