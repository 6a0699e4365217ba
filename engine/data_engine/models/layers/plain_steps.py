"""What a model of the plain path is asked for where it samples. Shapes: K rows, V vocabulary."""

from typing import Protocol

from torch import Tensor


class PlainSteps(Protocol):
    """Answers in the making on the plain path, the same number in each step."""

    def first(self) -> Tensor:
        """Logits of the first tokens, fp32 [K, V]."""

    def next(self, tokens_K: Tensor) -> Tensor:
        """Feed each row a token: logits of the tokens behind it, fp32 [K, V]."""
