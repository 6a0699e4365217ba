"""What the decoders of the native families share: their configuration in transformers, and the output weights."""

from pathlib import Path

from torch import Tensor, nn
from transformers import PretrainedConfig

from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.checkpoints.model_config import check_counts, described
from data_engine.models.tokenizer import Tokenizer

# Fields of a decoder's configuration that are numbers of something.
COUNTS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "sliding_window",
)  # fmt: skip


def decoder_config(kind: type[PretrainedConfig], raw: dict, where: Path, types: tuple[str, ...]) -> PretrainedConfig:
    """The configuration of the decoder that `raw`, read from the file `where`, describes.

    Raises ModelError for a model_type that is neither `kind`'s nor in `types`, or fields that transformers refuses.
    """
    if raw.get("model_type", kind.model_type) not in (kind.model_type, *types):
        raise ModelError(f"{where} has a decoder of type {raw['model_type']!r}; this family supports {kind.model_type}")
    fields = {key: value for key, value in raw.items() if key not in ("model_type", "architectures", "torch_dtype")}
    check_counts(fields, where, COUNTS)
    return described(where, lambda: kind(**fields))


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: Path) -> None:
    """Raise ModelError where the tokenizer gives ids that have no embedding."""
    needed = max(tokenizer.num_ids, tokenizer.bos + 1, tokenizer.eos + 1)
    if needed > vocab_size:
        raise ModelError(
            f"{where} has vocab_size {vocab_size}, but the tokenizer beside it gives ids up to {needed - 1}: it is not "
            "the tokenizer of this model"
        )


def head_weight(modules: nn.Module) -> Tensor:
    """[V, D]: the weight of `modules.head`, or the token embeddings where config.json ties the two."""
    return modules.head.weight if hasattr(modules, "head") else modules.decoder.embed_tokens.weight
