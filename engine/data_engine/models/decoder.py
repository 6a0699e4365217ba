"""Shared by the decoders of all families: transformers' configuration, the size of the cache, the output weights."""

from pathlib import Path

from torch import Tensor, nn
from transformers import PretrainedConfig

from data_engine.models.registry import ModelError


def decoder_config(kind: type[PretrainedConfig], raw: dict, where: Path, types: tuple[str, ...]) -> PretrainedConfig:
    """The configuration of the decoder that `raw`, read from the file `where`, describes.

    Raises ModelError for a model_type that is neither `kind`'s nor in `types`, or fields that transformers refuses.
    """
    if raw.get("model_type", kind.model_type) not in (kind.model_type, *types):
        raise ModelError(f"{where} has a decoder of type {raw['model_type']!r}; this family supports {kind.model_type}")
    fields = {key: value for key, value in raw.items() if key not in ("model_type", "architectures", "torch_dtype")}
    try:
        return kind.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where} does not describe a {kind.model_type} decoder: {error}") from error


def head_width(config: PretrainedConfig) -> int:
    """The width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def cache_values_per_token(config: PretrainedConfig) -> int:
    """Numbers in the key/value cache for one token, all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_width(config)


def head_weight(modules: nn.Module) -> Tensor:
    """[V, D]: the weight of `modules.head`, or the token embeddings where config.json ties the two."""
    return modules.head.weight if hasattr(modules, "head") else modules.decoder.embed_tokens.weight
