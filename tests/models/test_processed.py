"""A prompt as a processor of transformers makes it: what of it goes to the device, and which images can go alone."""

import pytest
import torch
from torch import Tensor

from data_engine.models.auto.forward.processed import ProcessedPrompt, on_device, pixels_alone

CPU = torch.device("cpu")
IDS, MASK = torch.tensor([[7, 9, 3]]), torch.ones(1, 3, dtype=torch.int64)
PIXELS = torch.rand(2, 3, 4, 4, dtype=torch.float64)
TEXT = {"input_ids": IDS, "attention_mask": MASK}


def test_pixels_take_the_models_dtype_and_ids_keep_theirs():
    found = on_device(ProcessedPrompt(TEXT | {"pixel_values": PIXELS}), CPU, torch.bfloat16)
    assert {name: value.dtype for name, value in found.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "pixel_values": torch.bfloat16,
    }
    assert torch.equal(found["pixel_values"], PIXELS.to(torch.bfloat16))
    assert torch.equal(found["input_ids"], IDS)


def test_pixels_whose_features_are_known_stay_where_they_are():
    prompt = ProcessedPrompt(TEXT | {"pixel_values": PIXELS, "image_sizes": IDS}, torch.rand(2, 4, 8))
    assert on_device(prompt, CPU, torch.float32).keys() == {"input_ids", "attention_mask", "image_sizes"}


@pytest.mark.parametrize(
    ("inputs", "alone"),
    [
        ({"pixel_values": PIXELS}, True),
        ({"pixel_values": PIXELS, "token_type_ids": MASK}, True),
        ({}, False),
        # Tiles of each image, filled up to the most; patches.
        ({"pixel_values": PIXELS[None]}, False),
        ({"pixel_values": PIXELS.flatten(1)}, False),
        # The model looks at sizes besides.
        ({"pixel_values": PIXELS, "image_sizes": IDS}, False),
    ],
)
def test_images_go_alone_where_nothing_else_is_known_of_them(inputs: dict[str, Tensor], alone: bool):
    prompt = ProcessedPrompt(TEXT | inputs)
    assert pixels_alone(prompt) is (inputs["pixel_values"] if alone else None)
