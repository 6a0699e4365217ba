"""From hidden states to logits and log-probs: the output weights, and what a model does with its logits.

Shapes: N tokens, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data_engine_kernels import token_logps
from data_engine_kernels.reference import check_targets, logits_fp32, on_device

# Rows of logits at a time, where a model changes its logits.
ROWS = 1024
# The logit of a token that is never said: its weight is 0, and a vocabulary of such logits adds up to a number.
NEVER = -1e30


@dataclass(frozen=True)
class Head:
    """The output layer: logits are cap tanh(scale (h W^T + b) / cap)."""

    weight: Tensor
    """[V, D]"""
    bias: Tensor | None = None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None
    never: Tensor | None = None
    """ids [N] of tokens that the model gives the least logit that there is, as Chameleon does those of its pictures"""

    @property
    def is_plain(self) -> bool:
        return self.bias is None and self.never is None and self.scale == 1 and self.softcap is None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """fp32 [N, V]."""
        logits = logits_fp32(hidden_ND, self.weight)
        return logits if self.is_plain else self.finish(logits)

    def finish(self, logits_NV: Tensor) -> Tensor:
        """Logits of the model, from those of the weight alone."""
        if self.bias is not None:
            logits_NV = logits_NV + self.bias.float()
        if self.scale != 1:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV if self.never is None else logits_NV.index_fill_(-1, self.never, NEVER)

    def token_logps(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """log p of each target, nats, fp32 [N]. Raises ValueError for a target outside [0, V).

        Targets on the host are checked there, without waiting for the device.
        """
        if self.is_plain:
            return token_logps(hidden_ND, self.weight, targets_N)
        check_targets(targets_N, len(self.weight))
        targets_N = on_device(targets_N, hidden_ND.device)
        parts = zip(hidden_ND.split(ROWS), targets_N.split(ROWS), strict=True)
        found = [self.logits(rows).log_softmax(-1).gather(-1, ids[:, None])[:, 0] for rows, ids in parts]
        return torch.cat(found) if found else hidden_ND.new_empty(0, dtype=torch.float32)
