"""What a model family is to the rest of the engine: it turns (image, question) into a prefix, and text into ids.

Sampling and scoring see the prefix, the decoder and the head, and are written once for all families.
Shapes: B images, N image tokens, P prefix tokens, T tokens, V vocabulary, D width.
"""

from pathlib import Path
from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from data_engine.errors import UserError

# Stands in prompt ids where the image's features go; no tokenizer has a negative id.
IMAGE_TOKEN = -200


class Split(Protocol):
    """How a model is divided over ranks while it is loaded; models/sharding/zero3.py is one way."""

    reads: bool
    """whether this rank reads the divided weights from disk; the others get their shares from it"""

    def divides(self, name: str) -> bool:
        """Whether the weight of this name, in the family's modules, is divided."""

    def divide(self, value: Tensor) -> nn.Parameter:
        """A parameter of which this rank keeps its share; a rank that does not read gives an empty one like it."""

    def release(self) -> None:
        """Let go of the model that was divided last."""

    def run_together(self, model: "VisionLanguageModel") -> None:
        """Make each call of the model's decoder and vision tower one that all ranks make at once."""


class VisionLanguageModel(Protocol):
    """One loaded checkpoint."""

    family: str
    decoder: nn.Module
    """transformers' decoder without a head, its attention dispatched by attention.NAME"""
    vision: nn.Module
    """the vision tower, which encode_images calls once"""
    head_weight: Tensor
    """[V, D]"""
    device: torch.device
    dtype: torch.dtype
    eos_token_ids: tuple[int, ...]
    markers: tuple[str, ...]
    """text that belongs to the prompt format: an answer that contains it never ranks"""
    max_positions: int
    """longest row, prefix and answer together, that the decoder was made for"""
    vocabulary: str
    """fingerprint of the tokenizer: two models with the same one can exchange token ids"""
    image_tokens: int
    """N, rows that an image takes in the prefix"""

    def pixels(self, image: Image, crop: bool, max_megapixels: float) -> Tensor:
        """RGB image -> [3, H, W] fp32 on CPU; `crop` is the scoring stage's geometry, else the sampling stage's.

        Raises images.BadImage where the padded or resized image would pass max_megapixels.
        """

    def prompt_ids(self, question: str) -> list[int]:
        """The prompt up to where the answer starts, with one IMAGE_TOKEN."""

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """An answer's ids behind that prompt, as in training: text taken literally, EOS at the end."""

    def text(self, token_ids: list[int]) -> str:
        """Decoded, special tokens skipped, stripped."""

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        """Image features in the decoder's space [B, N, D]."""

    def embed_tokens(self, token_ids_T: Tensor) -> Tensor:
        """[T, D]"""


class ModelFamily(Protocol):
    """What a line of registry.FAMILIES names: a class whose instances are VisionLanguageModels."""

    markers: tuple[str, ...]

    @classmethod
    def load(
        cls, folder: Path, device: torch.device, dtype: torch.dtype, split: Split | None = None
    ) -> VisionLanguageModel:
        """Read a checkpoint folder, by checkpoint.Filler, which divides the weights that `split` names.

        Raises registry.ModelError naming what is missing, unexpected or contradictory.
        """

    @staticmethod
    def cache_values_per_token(folder: Path) -> int:
        """Numbers that the keys and values of one token take, all layers."""


@torch.inference_mode()
def prefix(model: VisionLanguageModel, pixels: Tensor, question: str) -> Tensor:
    """Embeddings of the whole prompt, image features in their place [P, D]."""
    features = model.encode_images(sent(pixels[None], model.device))[0]
    return splice(model, model.prompt_ids(question), features)


def prefix_length(model: VisionLanguageModel, question: str) -> int:
    """P, without computing the prefix."""
    return len(model.prompt_ids(question)) - 1 + model.image_tokens


def splice(model: VisionLanguageModel, ids: list[int], features_ND: Tensor) -> Tensor:
    """The prompt's token embeddings with the features in place of IMAGE_TOKEN."""
    at = ids.index(IMAGE_TOKEN)
    before, after = (sent(torch.tensor(part, dtype=torch.long), model.device) for part in (ids[:at], ids[at + 1 :]))
    return torch.cat([model.embed_tokens(before), features_ND, model.embed_tokens(after)])


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the device, without waiting for what runs there: a GPU copies it from pinned memory."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def pick_device(device: str) -> torch.device:
    """ "auto" is cuda where there is one. Raises UserError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device {device!r}; expected auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r} was asked for, but torch sees no GPU")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device!r} was asked for, but torch sees {torch.cuda.device_count()} of them, counted from 0; "
            "each rank of a machine takes one"
        )
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on cuda and float32 elsewhere. Raises UserError for a dtype that is none of the three."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"unknown dtype {dtype!r}; expected auto, float32, bfloat16 or float16")
    return getattr(torch, dtype)
