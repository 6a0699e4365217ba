"""What `validate` tells of a checkpoint: its kind, its memory, and whether its answers share their prompts."""

import torch

from data_engine.models import family_class
from data_engine.models.check import Checked
from data_engine.models.checkpoints.adapter_folder import parts
from data_engine.models.checkpoints.checkpoint import num_weights


def told(checked: Checked, dtype: torch.dtype) -> str:
    """What `validate` tells of it, for a run in that dtype."""
    code = family_class(checked.family)
    found, item = code.describe(checked.folder), dtype.itemsize
    memory = f"{num_weights(code.folders(checked.folder)) * item / 1e9:.1f} GB of weights"
    memory += f" and {found.sizes.per_token * item / 1e3:.1f} kB of cache a token"
    if found.sizes.per_answer:
        memory += f", {found.sizes.per_answer * 4 / 1e3:.1f} kB an answer"
    if found.sizes.per_prompt:
        memory += f", {found.sizes.per_prompt * item / 1e6:.1f} MB an image"
    memory += "," if found.sizes.per_answer or found.sizes.per_prompt else ""
    line = f"{checked.family} ({found.kind}), {memory} in {str(dtype).removeprefix('torch.')}"
    if both := parts(checked.folder):
        line += f"; the adapter {both[0]}, merged into its base {both[1]}"
    if found.why_plain:
        return f"{line}; plain path, each answer with a prompt of its own: {found.why_plain}"
    shared = f", up to {found.most_shared} tokens" if found.most_shared else ""
    return f"{line}; answers share their prompt{shared}"
