"""Every published size in InternVL's own layout: transformers' model of its config.json has the published parameters.

Weight files are holes of the real size behind real headers, so that each published name is looked for and found.
"""

import json
import math
import struct

import pytest
import torch
from internvl_folders import shapes_of, write_conversations, write_json
from internvl_sizes import PUBLISHED
from transformers import AutoModelForImageTextToText

from data_engine.models.auto.config import load_config
from data_engine.models.auto.weights.loading import check_weights


def write_holes(path, shapes) -> None:
    """A safetensors file in bfloat16 without content."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + offset)


# Those of two generations may be one size.
NAMES = {size: "=".join(name for name, other in PUBLISHED.items() if other == size) for size in PUBLISHED.values()}


@pytest.mark.families
@pytest.mark.parametrize("published", NAMES, ids=NAMES.values())
def test_a_published_size_has_its_published_parameters(tmp_path, published):
    config = published.config()
    write_json(tmp_path / "config.json", config)
    write_conversations(tmp_path)
    write_json(tmp_path / "added_tokens.json", {"<IMG_CONTEXT>": published.sizes[-1] - 7})
    shapes = shapes_of(config)
    write_holes(tmp_path / "model.safetensors", shapes)
    check_weights(tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(load_config(tmp_path))
    count = sum(one.numel() for one in model.parameters())
    assert count == sum(map(math.prod, shapes.values()))
    if not published.with_head:
        count -= model.lm_head.weight.numel()
    digits = len(published.count.partition(".")[2])
    assert f"{count / 1e9:.{digits}f}" == published.count
