"""The layers of a decoder as its device computes them fastest: packed on a CPU; merged, with kernels, on a GPU."""

import torch
from torch import nn

from data_engine.models.layers import cpu_linear, fused, merged_linear


def fit(decoder: nn.Module, device: torch.device, *, split: bool = False, compiled: bool = False) -> None:
    """Change the layers of a decoder that was loaded. With `split`, its weights are gathered for each call.

    With `compiled`, small operations stay as they are on a GPU: the compiler makes kernels of its own.
    """
    cpu_linear.pack_linears(decoder, once=not split)
    if merged_linear.merges_linears(device, split=split):
        merged_linear.merge_linears(decoder)
    if not compiled:
        fuse(decoder, device, split=split)


def fuse(decoder: nn.Module, device: torch.device, *, split: bool) -> None:
    """Have small operations run as kernels, on a GPU that has them. Call it after layers are merged, by their code."""
    if merged_linear.merges_linears(device, split=split):
        fused.fuse_operations(decoder)
