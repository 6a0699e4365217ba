"""What a model of transformers is, before its weights are read: its decoder runs on a device without numbers."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.distributions import Distribution
from transformers import AutoModelForImageTextToText, PreTrainedConfig
from transformers.cache_utils import DynamicCache

from data_engine.models.auto.config import load_config
from data_engine.models.auto.limits import fast_positions, rope_tables
from data_engine.models.auto.parts import Attention, find_decoder, layer_kinds
from data_engine.models.auto.weights.loading import quiet
from data_engine.models.base import CacheSizes, Description
from data_engine.models.checkpoints.json_files import reason
from data_engine.models.layers.answer_cache import CACHE, is_recurrent, require_shareable, tensors
from data_engine.models.layers.attention import DoesNotFit, attending
from data_engine.models.layers.layer_kind import cache_values_per_token
from data_engine.models.layers.linear_uses import with_weights_read
from data_engine.models.layers.noting import Finding
from data_engine.models.layers.rotary import BY_LARGEST_POSITION

log = logging.getLogger(__name__)

# Tokens of the pass. Layers for image states do not run in it, and keep nothing of an answer.
TOKENS = 3
LOCAL = ("sliding", "chunked")


@dataclass(frozen=True)
class _Measured:
    sizes: CacheSizes
    why_plain: str | None = None
    seen: bool = True
    """whether the decoder could run without weights; else the sizes are those of full attention in all layers"""
    all_called: bool = True
    """a text calls all modules of the decoder with weights; not Ernie's experts for pictures, nor Gemma 3n's AltUp"""


def cache_sizes(folder: Path) -> CacheSizes:
    """Numbers that all layers keep together."""
    return _measured(folder).sizes


def are_known(folder: Path) -> bool:
    """Whether the sizes were found, and not guessed."""
    return _measured(folder).seen


def text_calls_all(folder: Path) -> bool:
    """Whether a text alone calls all modules of the decoder that have weights."""
    return _measured(folder).all_called


def describe(folder: Path) -> Description:
    """The kind of its layers, and whether its answers can share their prompts, as far as its configuration tells."""
    config = load_config(folder)
    text = config.get_text_config(decoder=True)
    found = _measured(folder)
    kinds = [config.model_type]
    if found.seen:
        kinds.append("attention and recurrent states" if found.sizes.per_answer else "attention alone")
    if any(str(kind).startswith(LOCAL) for kind in getattr(text, "layer_types", None) or ()):
        kinds.append("windows")
    if getattr(text, "cross_attention_layers", None):
        kinds.append("layers for image states")
    whole, shared = text.max_position_embeddings, fast_positions(text)
    return Description(
        ", ".join(kinds),
        found.sizes,
        whole,
        found.why_plain,
        shared if shared < whole else None,
    )


@functools.lru_cache(8)
def _measured(folder: Path) -> _Measured:
    config = load_config(folder)
    try:
        with quiet():
            return _run_on_meta(config)
    except DoesNotFit as problem:
        why = str(problem)
    # Whatever a decoder raises on a device without numbers; the run itself says what a model cannot do.
    except Exception as error:
        log.warning("what the layers of %s keep is guessed, as full attention in all of them: its decoder does not run "
                    "without weights (%s: %s)", folder, type(error).__name__, reason(error))  # fmt: skip
        why = None
    return _Measured(CacheSizes(cache_values_per_token(config.get_text_config(decoder=True))), why, seen=False)


@torch.inference_mode()
def _run_on_meta(config: PreTrainedConfig) -> _Measured:
    _stop_growing_tables(config)
    with torch.device("meta"):
        # Experts are multiplied together in bf16 alone on this device.
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
        decoder = find_decoder(model)
        Attention(decoder)
        finding = Finding(TOKENS, set(decoder.modules()))
        cache = DynamicCache(config=config.get_text_config(decoder=True))
        require_shareable(cache.layers)
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
        with attending(finding, finding.layers), _modules_left(decoder) as left, _unchecked_distributions():
            decoder(input_ids=ids, position_ids=torch.arange(TOKENS)[None], **{CACHE: cache}, use_cache=True)
    if not finding.noted:
        raise DoesNotFit("no layer of its decoder attends through transformers' attention interface")
    kinds = layer_kinds(finding.noted)
    states = [one for layer in cache.layers if is_recurrent(layer) for one in tensors(layer)]
    sizes = CacheSizes(
        sum(kind.values_per_token for kind in kinds), sum(one.numel() for one in states), _image_states(config)
    )
    return _Measured(sizes, all_called=not left)


@contextlib.contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """torch.distributions, which Gemma 3n's activations go by, looks at no numbers to check them."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextlib.contextmanager
def _modules_left(decoder: nn.Module) -> Iterator[set[nn.Module]]:
    """The modules with weights that are not called inside, but for those whose owner reads their weights itself."""
    left = {module for module in decoder.modules() if next(module.parameters(recurse=False), None) is not None}
    left -= with_weights_read(decoder)
    with contextlib.ExitStack() as hooks:
        for module in left:
            hooks.enter_context(module.register_forward_pre_hook(lambda module, args: left.discard(module)))
        yield left


def _image_states(config: PreTrainedConfig) -> int:
    """Numbers that an image leaves in Mllama's layers for image states: of all tiles, since it is filled up to those,
    each of its patches and one more for the whole.
    """
    text = config.get_text_config(decoder=True)
    layers = len(getattr(text, "cross_attention_layers", None) or ())
    if not layers:
        return 0
    vision = config.vision_config
    states = vision.max_num_tiles * ((vision.image_size // vision.patch_size) ** 2 + 1)
    return 2 * layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * states


def _stop_growing_tables(config: PreTrainedConfig) -> None:
    """Have rotary tables not look at the largest position, which a device without numbers does not have.

    What layers keep does not depend on it.
    """
    for table in rope_tables(config.get_text_config(decoder=True)):
        if table.get("rope_type") in BY_LARGEST_POSITION:
            table["rope_type"] = "default"
