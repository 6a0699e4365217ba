"""The processor of a folder in InternVL's own layout: transformers' InternVL's, made from files that do not name it.

Source of the tiling: dynamic_preprocess of InternVL's repository, which GotOcr2ImageProcessor of transformers computes.
"""

from pathlib import Path

from transformers import InternVLProcessor, ProcessorMixin
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from data_engine.models.checkpoints.json_files import ModelError, read_json
from data_engine.models.internvl_chat.config import image_tokens, tile_size, tiles
from data_engine.models.internvl_chat.conversation import chat_template, conversation_of
from data_engine.models.internvl_chat.tokenizer import load_tokenizer
from data_engine.store.absent import is_file

# ImageNet's, which InternVL's repository has in its code.
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def load_processor(folder: Path) -> ProcessorMixin:
    """Pillow's, without films. Raises ModelError for what is missing or wrong in the folder's files."""
    where = folder / "config.json"
    raw = read_json(where)
    template = chat_template(conversation_of(folder, raw))
    return _StillProcessor(
        _image_processor(folder, raw), load_tokenizer(folder), image_seq_length=image_tokens(raw, where),
        chat_template=template,
    )  # fmt: skip


class _StillProcessor(InternVLProcessor):
    """Without a video processor, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def _image_processor(folder: Path, raw: dict) -> GotOcr2ImageProcessorPil:
    path = folder / "preprocessor_config.json"
    told = read_json(path) if is_file(path) else {}
    mean, std = told.get("image_mean", _MEAN), told.get("image_std", _STD)
    for name, value in (("image_mean", mean), ("image_std", std)):
        if not (isinstance(value, list) and len(value) == 3 and all(isinstance(one, int | float) for one in value)):
            raise ModelError(f"{path} has {name} {value!r}; expected a number for each of three colours")
    least, most = tiles(raw, folder / "config.json")
    side = tile_size(raw)
    return GotOcr2ImageProcessorPil(
        size={"height": side, "width": side}, crop_to_patches=True, min_patches=least, max_patches=most,
        image_mean=mean, image_std=std, do_resize=True, do_rescale=True, do_normalize=True, do_convert_rgb=True,
    )  # fmt: skip
