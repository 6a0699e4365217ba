"""The protocol of a model family: it turns (image, question) into a prefix, and text into ids.

Sampling and scoring see the prefix, the decoder and the head, and are written once for all families.
Shapes: B images, N image tokens, P prefix tokens, T tokens, V vocabulary, D width.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from data_engine.errors import UserError

# Placeholder in prompt ids for the image's features; no tokenizer has a negative id.
IMAGE_TOKEN = -200


class Split(Protocol):
    """How a model is split over ranks while it is loaded, as sharding.zero3.Zero3Split does."""

    reads: bool
    """whether this rank reads the divided weights from disk, and sends the other ranks their shares"""

    def divides(self, name: str) -> bool:
        """Whether the weight of this name in the family's modules is divided; the others stay whole on each rank."""

    def divide(self, value: Tensor) -> nn.Parameter:
        """A parameter of which this rank keeps its share. A rank that does not read passes an empty tensor."""

    def release(self) -> None:
        """Free the weights of the model that was divided last."""

    def run_together(self, model: "VisionLanguageModel") -> None:
        """Have all ranks make each call of the model's decoder and vision tower at the same time."""


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
    """texts of the prompt format: an answer that contains one never ranks"""
    max_positions: int
    """context length: most tokens of prefix and answer together"""
    vocabulary: str
    """fingerprint of the tokenizer: models whose fingerprints are equal can exchange token ids"""
    image_tokens: int
    """N, tokens of an image in the prefix"""
    is_split: bool
    """the weights are split over ranks: all make each call together, and one that fails leaves the others waiting"""

    def pixels(self, image: Image, crop: bool, max_megapixels: float) -> Tensor:
        """RGB image -> [3, H, W] fp32 on CPU. `crop` selects the preprocessing of scoring instead of that of sampling.

        Raises images.BadImage where the padded or resized image would exceed max_megapixels.
        """

    def prompt_ids(self, question: str) -> list[int]:
        """The prompt up to the start of the answer, with one IMAGE_TOKEN."""

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """An answer's ids behind that prompt, as in training: no special token parsed from the text, EOS at the end."""

    def text(self, token_ids: list[int]) -> str:
        """Decoded, special tokens skipped, stripped."""

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        """Image features in the decoder's space [B, N, D]."""

    def embed_tokens(self, token_ids_T: Tensor) -> Tensor:
        """[T, D]"""


class ModelFamily(Protocol):
    """The class that a line of registry.FAMILIES names; its instances are VisionLanguageModels."""

    markers: tuple[str, ...]

    @classmethod
    def load(
        cls, folder: Path, device: torch.device, dtype: torch.dtype, split: Split | None = None
    ) -> VisionLanguageModel:
        """Read a checkpoint folder. checkpoint.Blueprint places the weights: whole, or as `split` divides them.

        Raises registry.ModelError naming what is missing, unexpected or contradictory.
        """

    @classmethod
    def check(cls, folder: Path) -> None:
        """Raise ModelError for what `load` would refuse, by the headers of the weight files alone."""

    @staticmethod
    def cache_values_per_token(folder: Path) -> int:
        """Numbers in the key/value cache for one token, all layers."""

    @staticmethod
    def folders(folder: Path) -> list[Path]:
        """The folders that a checkpoint is read from: its own first, then one for each part that lies elsewhere."""


@torch.inference_mode()
def prefix(model: VisionLanguageModel, pixels: Tensor, question: str) -> Tensor:
    """Embeddings of the whole prompt, with the image features in it [P, D]."""
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
    """Copy a CPU tensor to the device without synchronising: a GPU copies it from pinned memory."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class Target(NamedTuple):
    """Where a model runs, and in which precision."""

    device: torch.device
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        """As --dtype spells it."""
        return str(self.dtype).removeprefix("torch.")


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
