"""How far answers may go behind a shared prompt, where a model counts places in a way that only shows far on."""

from collections.abc import Iterator

from transformers import PretrainedConfig

# Their table depends on the largest position of the pass, so an answer's would depend on the others beside it.
BY_LARGEST_POSITION = ("dynamic", "longrope")


def fast_positions(config: PretrainedConfig) -> int:
    """Most tokens of prompt and answer on the fast path, from a text decoder's configuration."""
    longest = config.max_position_embeddings
    # Llama 4 scales queries by their place within the pass from there on.
    if getattr(config, "attn_temperature_tuning", False):
        longest = min(longest, int(config.floor_scale))
    for rope in _rope_tables(getattr(config, "rope_parameters", None) or {}):
        if rope.get("rope_type") in BY_LARGEST_POSITION:
            original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            longest = min(longest, int(original))
    return longest


def _rope_tables(parameters: dict) -> Iterator[dict]:
    """The parameters of each rotary table: one, or one by the kind of layer."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    yield from nested or [parameters]
