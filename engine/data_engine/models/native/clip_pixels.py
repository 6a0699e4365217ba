"""Preprocessing for towers that were trained by CLIP: resizing on 8 bits, and CLIP's normalisation."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic on 8 bits to (width, height): the width first, then the height.

    Pillow before 13 always did so. Since 13 it may resize the height first, which rounds differently (by up to 6 of 255
    levels in a test) from the pixels that the published models were trained on.
    """
    across = image.resize((size[0], image.height), Image.Resampling.BICUBIC)
    return across.resize(size, Image.Resampling.BICUBIC)


def normalised(image: Image.Image) -> Tensor:
    """(x / 255 - mean) / std of an RGB image, [3, H, W] fp32."""
    values = np.asarray(image, dtype=np.float32) / 255
    values = (values - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(values.transpose(2, 0, 1).copy())
