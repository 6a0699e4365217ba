"""Which of its backends torch computes by: for the whole process, before a model is loaded."""

import torch


def choose_backends() -> None:
    """Those that round as little, and wait as little, as torch allows."""
    # By torch's default, cuDNN rounds what fp32 convolutions of a vision tower are given to the 10 bits of TF32.
    torch.backends.cudnn.allow_tf32 = False
    # Some containers ask for TF32 in products, too (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE).
    torch.set_float32_matmul_precision("highest")
    # cuBLAS may sum a product of few rows in parts, and by torch's default adds those up in 16 bits.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    # On an H100 sdpa prefers cuDNN's attention, which the host plans anew for each length: tens of milliseconds each.
    torch.backends.cuda.enable_cudnn_sdp(False)
