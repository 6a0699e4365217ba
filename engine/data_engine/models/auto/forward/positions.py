"""Positions of a prompt's tokens by the rule of its model, computed on the host.

Models with multimodal RoPE give a picture's tokens a place in time, row and column. From tensors of the device,
transformers reads the size of each picture for it, and the host waits each time.
"""

import inspect
from collections.abc import Callable, Mapping

from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

Positions = Callable[[Mapping[str, Tensor]], Tensor | None]
"""`position_ids` [axes, 1, P] from a prompt's inputs on the host; None: the model counts"""


def host_positions(model: PreTrainedModel) -> Positions:
    """What computes positions as the model's own forward does; for a model without a rule of its own, always None."""
    owner = next((module for module in model.modules() if hasattr(module, "compute_3d_position_ids")), None)
    if owner is None:
        return lambda inputs: None
    rule = owner.compute_3d_position_ids
    names = list(inspect.signature(rule).parameters)
    # Without embeddings and a cache: a prompt's pass has ids, and nothing before them.
    return lambda inputs: rule(**{name: inputs.get(name) for name in names})
