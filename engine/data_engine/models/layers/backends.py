"""Which of its backends torch computes by: for the whole process, before a model is loaded."""

import torch


def choose_backends() -> None:
    """Those that round as little, and wait as little, as torch allows."""
    # By torch's default, cuDNN rounds what fp32 convolutions of a vision tower are given to the 10 bits of TF32.
    torch.backends.cudnn.allow_tf32 = False
    # On an H100 sdpa prefers cuDNN's attention, which the host plans anew for each length: tens of milliseconds each.
    torch.backends.cuda.enable_cudnn_sdp(False)
