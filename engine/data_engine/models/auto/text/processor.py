"""The processor of a checkpoint of transformers: tokenizer and image processor, without remote code and without video.

A folder in, transformers' processor out. Whatever a folder or an installation lacks is a ModelError that says so.
"""

import copy
import re
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import BatchEncoding, BatchFeature, PreTrainedConfig, ProcessorMixin

# Older ones hide it at the top where torchvision is missing, though it finds Pillow's without.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from data_engine.models import internvl_chat
from data_engine.models.auto.config import LOCAL
from data_engine.models.checkpoints.json_files import ModelError, read_json, reason, refuse_pointer
from data_engine.models.internvl_chat.processor import load_processor as load_internvl_chat
from data_engine.store.absent import is_file, matching

# Files that may name the class of the processor, in the order in which transformers asks them.
_NAMING = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
           "tokenizer_config.json")  # fmt: skip
# By which files a folder has each.
_NEEDED = {
    "processor": ("processor_config.json", "preprocessor_config.json"),
    "tokenizer": ("tokenizer.json", "tokenizer.model", "*.model", "vocab.*", "*.tiktoken", "tekken.json"),
}
# Text that transformers' files for the processor hold, which a clone without Git LFS may have left out.
_PARTS = ("*.json", "*.model", "*.jinja", "*.txt")
# What transformers says where it misses torchvision, or a video processor, which needs torchvision.
_NEEDS_TORCHVISION = re.compile(r"torchvision|video.?processor", re.IGNORECASE)
_PIP = re.compile(r"pip install ([\w\[\]-]+)")
# By these a processor cuts or fills up each text. A saved tokenizer keeps those of its last call, as in training.
_LENGTHS = ("max_length", "truncation", "stride", "padding", "pad_to_multiple_of")


def load_processor(folder: Path, config: PreTrainedConfig) -> ProcessorMixin:
    """The processor with Pillow's image processor where there is one, whatever else is installed; it cuts no text.

    Raises ModelError naming the file or package that is missing.
    """
    for path in (path for pattern in _PARTS for path in matching(folder, pattern)):
        refuse_pointer(path)
    try:
        if internvl_chat.is_own_folder(folder):
            processor = load_internvl_chat(folder)
        else:
            processor = _loaded(folder, _class(folder, config))
    except ModelError:
        raise
    # A processor that lacks something raises ImportError, OSError, ValueError, AttributeError or TypeError.
    except Exception as error:
        raise explained(folder, error) from error
    for name in _LENGTHS:
        processor.tokenizer.init_kwargs.pop(name, None)
    return processor


def explained(folder: Path, error: Exception) -> ModelError:
    """What to do about an exception of a processor: the file or package that it needs, or its own words."""
    for what, names in _NEEDED.items():
        # InternVL's own layout has what makes pixels in config.json.
        if what == "processor" and internvl_chat.is_own_folder(folder):
            continue
        if not any(matching(folder, name) for name in names):
            return ModelError(
                f"{folder} has no {what} ({' or '.join(names[:2])}), which a trainer saves apart from the model: copy "
                "the files of processor and tokenizer from the model that it was trained from"
            )
    told = f"{type(error).__name__}: {error}"
    # A class that asks its video processor for something finds none.
    if find_spec("torchvision") is None and (_NEEDS_TORCHVISION.search(told) or _asks_for_part(error)):
        return ModelError(f"the processor of {folder} needs torchvision: pip install {_torchvision()}")
    wanted = _PIP.search(told)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return ModelError(f"the processor of {folder} needs {error.name}: pip install {error.name}")
    if isinstance(error, ImportError) and wanted:
        return ModelError(f"the processor of {folder} needs {wanted[1]}: pip install {wanted[1]}")
    return ModelError(f"the processor of {folder} cannot be used ({type(error).__name__}: {reason(error)})")


def _asks_for_part(error: Exception) -> bool:
    return isinstance(error, AttributeError) and error.name is not None and error.obj is None


def _torchvision() -> str:
    """torch 2.N was released together with torchvision 0.(N + 15)."""
    major, minor = torch.__version__.split(".")[:2]
    return f"torchvision==0.{int(minor) + 15}.*" if major == "2" else "torchvision"


def _class(folder: Path, config: PreTrainedConfig) -> type[ProcessorMixin]:
    told = [read_json(folder / name) for name in _NAMING if is_file(folder / name)]
    names = [name for name in (raw.get("processor_class") for raw in told) if isinstance(name, str)]
    known = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    for name in filter(None, [*names, known]):
        found = getattr(transformers, name, None)
        # What stands for one that needs torchvision says so when it is used; the next class would write other prompts.
        if isinstance(found, type) and (issubclass(found, ProcessorMixin) or getattr(found, "is_dummy", False)):
            return found
    if any("auto_map" in raw for raw in told):
        raise ModelError(f"the processor of {folder} is remote code (auto_map), which is never run")
    named = f"the processor {names[0]}, which transformers {transformers.__version__} does not know" if names else None
    raise ModelError(f"{folder} has {named or 'no processor: preprocessor_config.json or processor_config.json'}")


def _loaded(folder: Path, kind: type[ProcessorMixin]) -> ProcessorMixin:
    wanted = kind.get_attributes()
    if "image_processor" not in wanted:
        raise ModelError(f"the processor of {folder} ({kind.__name__}) has no image processor: it takes no images")
    still = [name for name in wanted if "video" not in name]
    if find_spec("torchvision") is None:
        processor = _with(kind, still).from_pretrained(folder, **LOCAL)
    else:
        try:
            processor = kind.from_pretrained(folder, **LOCAL)
        except Exception:
            if still == wanted:
                raise
            # The files of its video processor may be missing, which images do without.
            processor = _with(kind, still).from_pretrained(folder, **LOCAL)
    # Apart from the rest: AutoProcessor would hand `backend` on to the video processor, which has none of Pillow's.
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)
    return processor


class Once:
    """An image processor that is asked for the same pictures again and again, and computes them once."""

    def __init__(self, processor: object) -> None:
        self._processor, self._given = processor, None

    def __getattr__(self, name: str) -> object:
        return getattr(self._processor, name)

    def __call__(self, *args: object, **kwargs: object) -> BatchFeature:
        if self._given is None:
            self._given = self._processor(*args, **kwargs)
        # Processors take entries out of what they get.
        return BatchFeature(dict(self._given))


def text_alone(processor: ProcessorMixin) -> ProcessorMixin:
    """The processor, but for what a call of it does: it encodes the text as it stands, and looks at no image."""
    kind, alone = type(processor), copy.copy(processor)
    defaults = getattr(kind.valid_processor_kwargs, "_defaults", {}).get("text_kwargs", {})
    # Of these alone depends which ids a text becomes.
    names = ("add_special_tokens", "sanitize_control_tokens")

    def encode(self: ProcessorMixin, *args: object, text: object = None, **options: object) -> BatchEncoding:
        told = {name: value for name, value in {**defaults, **options}.items() if name in names}
        return self.tokenizer(text, return_tensors="pt", **told)

    alone.__class__ = type(kind.__name__, (kind,), {"__call__": encode, "__module__": kind.__module__})
    return alone


def in_one_list(processor: ProcessorMixin) -> ProcessorMixin:
    """The processor, handed the images of a conversation in a list, not in a list for each conversation."""
    kind, flat = type(processor), copy.copy(processor)

    def call(self: ProcessorMixin, *args: object, images: list[list] | None = None, **options: object) -> BatchFeature:
        return kind.__call__(self, *args, images=images and [one for each in images for one in each], **options)

    flat.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return flat


def _with(kind: type[ProcessorMixin], attributes: list[str]) -> type[ProcessorMixin]:
    """The class without some of its parts: a video processor needs torchvision, and images do not need it."""
    fewer = {"get_attributes": classmethod(lambda cls: attributes), "__module__": kind.__module__}
    loading = type(kind.__name__, (kind,), fewer)

    def parts(cls: type[ProcessorMixin], *args: object, **options: object) -> list:
        """Those of a folder. Classes hand them on by place, so None stands for one that is left out."""
        found = dict(zip(attributes, loading._get_arguments_from_pretrained(*args, **options), strict=True))
        return [found.get(name) for name in kind.get_attributes()]

    def check(self: ProcessorMixin, name: str, part: object) -> object:
        return None if part is None else kind.check_argument_for_proper_class(self, name, part)

    own = {
        "_get_arguments_from_pretrained": classmethod(parts), "check_argument_for_proper_class": check,
        "__module__": kind.__module__,
    }  # fmt: skip
    return type(kind.__name__, (kind,), own)
