"""What a model takes: pictures of which size, and how far answers may go behind a shared prompt, where a model counts
places in a way that only shows far on.
"""

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL.Image import Image
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.layers.rotary import BY_LARGEST_POSITION
from data_engine.questions.images import BadImage, check_megapixels, resized_size

# Processors take an array with a side of 1 or 3 for one whose channels come first.
LEAST_SIDE = 4
NEEDS_IMAGE = "this model looks at its image in layers of their own, and the row has none"
NEEDS_PIXELS = "this model cannot run without an image"


# Which tokens are of a picture, among the inputs of a model.
TOKEN_TYPES = "mm_token_type_ids"


@functools.cache
def takes_token_types(config: type[PretrainedConfig]) -> bool:
    """Whether models of a configuration are called with the types of tokens."""
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(config, None)
    return model is not None and TOKEN_TYPES in inspect.signature(model.forward).parameters


def needs_pixels(model: type[PreTrainedModel]) -> bool:
    """Whether a model's forward has no default for pixels, as that of BLIP-2."""
    pixels = inspect.signature(model.forward).parameters.get("pixel_values")
    return pixels is not None and pixels.default is pixels.empty


def counts_in_pass(config: PretrainedConfig) -> bool:
    """Whether a text decoder takes the place of a token within the pass for its place in the sequence, as Llama 4."""
    return bool(getattr(config, "attn_temperature_tuning", False))


def fast_positions(config: PretrainedConfig) -> int:
    """Most tokens of prompt and answer on the fast path, from a text decoder's configuration."""
    longest = config.max_position_embeddings
    # From there on it scales queries by that place.
    if counts_in_pass(config):
        longest = min(longest, int(config.floor_scale))
    for rope in rope_tables(config):
        if rope.get("rope_type") in BY_LARGEST_POSITION:
            original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            longest = min(longest, int(original))
    return longest


def known_ids(
    prompt_ids: Iterable[int], config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> int:
    """Up to which id the model has embeddings: `sys.maxsize` where its tokenizer knows no other ones.

    Raises ModelError where a prompt of any question has one beyond: a GPU would only fail later.
    """
    largest, size = max(prompt_ids), config.get_text_config(decoder=True).vocab_size
    if max((largest, *tokenizer.get_vocab().values())) < size:
        return sys.maxsize
    size = num_embeddings(config, size)
    if largest >= size:
        raise ModelError(
            f"prompts of {folder} have the token {tokenizer.convert_ids_to_tokens(largest)!r} of id {largest}, and the "
            f"model has embeddings of {size} tokens: tokenizer or chat template are of another model, or the adapter "
            "was trained beside larger embeddings, which it does not have"
        )
    return size


def num_embeddings(config: PretrainedConfig, vocab_size: int) -> int:
    """Tokens that the model has embeddings of.

    More than its vocabulary has, where Mllama, Molmo 2 and Idefics keep their image tokens behind that.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        # Idefics has two tables.
        return sum(len(table) for table in model.get_input_embeddings().parameters())
    # Whatever a model raises that is made without numbers: loading it says what is wrong, if anything is.
    except Exception:
        return vocab_size


def check_size(image: Image, shortest_edge: int | None, max_megapixels: float) -> None:
    """Raise BadImage for a picture that is too large, before or after its short side is resized, or too small."""
    check_megapixels(*image.size, max_megapixels, "source image")
    if min(image.size) < LEAST_SIDE:
        width, height = image.size
        raise BadImage(f"image is {width} x {height} pixels; this model needs at least {LEAST_SIDE} on each side")
    if shortest_edge:
        check_megapixels(*resized_size(*image.size, shortest_edge), max_megapixels, "resized image")


def rope_tables(config: PretrainedConfig) -> Iterator[dict]:
    """The parameters of each rotary table of a text decoder: one, or one by the kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    yield from nested or [parameters]
