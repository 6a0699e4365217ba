"""The tiles of InternVL's own layout: those of dynamic_preprocess of InternVL's repository, pixel by pixel."""

import json

import internvl_folders
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import picture

from data_engine.models.auto.config import load_config
from data_engine.models.auto.text.processor import load_processor
from data_engine.models.checkpoints.json_files import ModelError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# Wide, high, tiny, square on a border of the rule, in other modes, and so large that the finest grid is taken.
ODD = {
    "wide": (400, 31), "high": (17, 300), "one pixel more": (29, 28), "small": (9, 7), "square": (84, 84),
    "square and large": (500, 500), "three to two": (90, 60), "four to one": (448, 112), "grey": (77, 140),
    "see-through": (101, 64), "palette": (55, 130),
}  # fmt: skip
MODES = {"grey": "L", "see-through": "RGBA", "palette": "P"}


def grid(width: int, height: int, least: int, most: int, side: int) -> tuple[int, int]:
    """Columns and rows: those nearest to the picture's shape; of equals the larger if the picture fills half of it."""
    every = sorted(
        ((columns, rows) for columns in range(1, most + 1) for rows in range(1, most + 1)
         if least <= columns * rows <= most), key=lambda one: one[0] * one[1],
    )  # fmt: skip
    best, nearest = (1, 1), float("inf")
    for columns, rows in every:
        apart = abs(width / height - columns / rows)
        if apart < nearest or (apart == nearest and width * height > 0.5 * side * side * columns * rows):
            best, nearest = (columns, rows), apart
    return best


def tiles(image: Image.Image, least: int, most: int, side: int) -> np.ndarray:
    """[N, 3, side, side]"""
    image = image.convert("RGB")
    columns, rows = grid(*image.size, least, most, side)
    whole = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    boxes = [(x * side, y * side, (x + 1) * side, (y + 1) * side) for y in range(rows) for x in range(columns)]
    cut = [whole.crop(box) for box in boxes]
    if len(cut) > 1:
        cut.append(image.resize((side, side), Image.Resampling.BICUBIC))
    return np.stack([((np.asarray(one) / 255 - MEAN) / STD).transpose(2, 0, 1) for one in cut])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return internvl_folders.write(tmp_path_factory.mktemp("tiles") / "model", "qwen2")


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    ("least", "most", "side"),
    [
        (1, 12, 28),
        pytest.param(1, 4, 28, marks=pytest.mark.families),
        pytest.param(2, 6, 56, marks=pytest.mark.families),
    ],
)
def test_tiles_are_those_of_the_repository(folder, name, least, most, side):
    internvl_folders.change(folder, min_dynamic_patch=least, max_dynamic_patch=most, force_image_size=side)
    processor = load_processor(folder, load_config(folder))
    image = picture(*ODD[name], seed=3).convert(MODES.get(name, "RGB"))
    found = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    expected = tiles(image, least, most, side)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=1e-5, rtol=0)
    prompt = processor(images=[image], text=processor.image_token, return_tensors="pt")["input_ids"][0].tolist()
    tokens = (side // internvl_folders.PATCH // 2) ** 2
    assert prompt.count(processor.image_token_id) == len(expected) * tokens
    assert processor.image_seq_length == load_config(folder).image_seq_length == tokens


def test_without_dynamic_tiles_a_picture_is_one_tile(folder):
    internvl_folders.change(folder, dynamic_image_size=False, force_image_size=28)
    processor = load_processor(folder, load_config(folder))
    assert processor.image_processor(picture(400, 31, seed=1), return_tensors="pt")["pixel_values"].shape[0] == 1
    internvl_folders.change(folder, dynamic_image_size=True, min_dynamic_patch=1)


def test_mean_and_deviation_are_those_of_preprocessor_config(folder):
    path = folder / "preprocessor_config.json"
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0]}))
    image = Image.new("RGB", (28, 28), (255, 255, 255))
    pixels = load_processor(folder, load_config(folder)).image_processor(image, return_tensors="pt")["pixel_values"]
    assert pixels[0, :, 3, 3].tolist() == [2.0, 1.0, 0.5]
    path.write_text(json.dumps({"image_mean": "grey"}))
    with pytest.raises(ModelError, match="image_mean 'grey'; expected a number for each of three colours"):
        load_processor(folder, load_config(folder))
    path.unlink()
    pixels = load_processor(folder, load_config(folder)).image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        pixels[0, :, 3, 3], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )
    path.write_text(kept)
