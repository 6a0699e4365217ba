"""What an attention layer of a decoder keeps of a token, and whether the kernels compute it."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from data_engine_kernels import MOST_WIDTH


def head_width(config: PretrainedConfig) -> int:
    """The width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def cache_values_per_token(config: PretrainedConfig) -> int:
    """Numbers that all layers of a decoder with full attention keep of a token."""
    # Layers may differ, as those with windows of dots3-note do.
    return sum(2 * layer.num_key_value_heads * head_width(layer) for layer in config.per_layer_config)


@dataclass(frozen=True)
class LayerKind:
    """What an attention layer keeps of a token."""

    groups: int
    """key/value heads"""
    key_width: int
    value_width: int
    cross: bool = False
    """it looks at image states alone, and keeps nothing of an answer"""
    same_as: int | None = None
    """number of an earlier layer whose keys and values it uses"""
    sinks: bool = False
    """a learned score takes part in its softmax"""
    window: int | None = None
    """a token sees all before it in a sequence of up to so many; None: of any length"""
    slides: bool = False
    """in a longer one it sees the last `window` tokens, itself included; else the mask is of another kind"""
    weighs: bool = False
    """it adds numbers to the scores of image states that do more than to hide those hidden from all such layers"""

    @property
    def values_per_token(self) -> int:
        """Numbers that it keeps of a token."""
        own = not self.cross and self.same_as is None
        return self.groups * (self.key_width + self.value_width) if own else 0

    def why_no_kernel(self, longest: int) -> str | None:
        """What of it the kernels do not know, in sequences of up to so many tokens; None: they compute it."""
        if self.weighs:
            return "adds numbers of its own to the scores of image states"
        if self.sinks:
            return "has attention sinks"
        if self.key_width != self.value_width:
            return f"has keys of width {self.key_width} and values of width {self.value_width}"
        if self.key_width > MOST_WIDTH:
            return f"has heads of width {self.key_width}, and {MOST_WIDTH} is the most"
        if self.window is not None and longest > self.window and not self.slides:
            return "has a mask that is neither causal nor a sliding window"
        return None
