"""InternVL's own layout, model_type internvl_chat: its folders are read into transformers' InternVL, key by key.

No code that comes with such a folder is run: configuration, weights, tokenizer, chat format and tiling are each read
from its files. Imports no torch.
"""

from collections.abc import Mapping
from pathlib import Path

from data_engine.models.checkpoints.json_files import read_json

MODEL_TYPE = "internvl_chat"
IMAGE_TOKEN, IMAGE_START, IMAGE_END = "<IMG_CONTEXT>", "<img>", "</img>"


def is_own(raw: Mapping) -> bool:
    """Whether a config.json is of InternVL's own layout."""
    return raw.get("model_type") == MODEL_TYPE


def is_own_folder(folder: Path) -> bool:
    """Whether a checkpoint is in InternVL's own layout. Raises ModelError where config.json cannot be read."""
    return is_own(read_json(folder / "config.json"))
