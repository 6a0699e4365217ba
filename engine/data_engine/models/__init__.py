"""Model families. `load_model` is the public way in, registry.py has the table, base.py the protocol.

native/ and auto/ have the families, internvl_chat/ a layout that `auto` reads, checkpoints/ the files of a checkpoint,
layers/ how decoders compute, sharding/ models that are split over ranks.
"""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from data_engine.chat_settings import ChatSettings
from data_engine.flags import require
from data_engine.models.checkpoints.adapter_folder import model_folder, parts, telling_real_places
from data_engine.models.checkpoints.allocation import map_large_tensors
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.checkpoints.weight_files import check_files
from data_engine.models.registry import AUTO, FAMILIES, family_of
from data_engine.tables import load

if TYPE_CHECKING:
    from data_engine.models.base import ModelFamily, Split, VisionLanguageModel

log = logging.getLogger(__name__)


def load_model(
    name: str | None,
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    base_path: str | os.PathLike[str] | None = None,
    split: "Split | None" = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, object] | None = None,
    headed: bool = False,
    compiled: bool = False,
) -> "VisionLanguageModel":
    """Load a checkpoint, weights held once, ready for sample_answers and score_answers.

    `name` is a known model name, or None to go by config.json; `device` "auto" is cuda if there is one; `dtype` "auto"
    is bfloat16 on cuda and float32 elsewhere. `path` may be an adapter of peft, which is merged into the base that its
    adapter_config.json names, or that `base_path` does. With `split`, all ranks load at the same time, and each keeps a
    share.
    `chat_template` is the text of a template in the place of the checkpoint's own, which most checkpoints have;
    `chat_template_kwargs` are its variables, as {"enable_thinking": False}.
    With `headed` it is a reward model, which has a head of one number, and may lack the one of its vocabulary. With
    `compiled`, answers run through layers by torch.compile, where the model allows it; a warning says where not.
    Raises UserError, a ValueError, naming what is wrong.
    """
    from data_engine.models.device import pick_device, pick_dtype
    from data_engine.models.layers.backends import choose_backends
    from data_engine.models.layers.compiled_layers import compile_layers
    from data_engine.models.layers.for_device import fit, fuse
    from data_engine.models.layers.rotary import keep_constant_tables

    _check_types(name, path, chat_template, chat_template_kwargs)
    choose_backends()
    with telling_real_places():
        folder = model_folder(path, revision, base_path)
        # Merging makes and frees tensors between those that stay.
        if parts(folder) is not None:
            map_large_tensors()
        chosen = pick_device(device)
        if split is not None:
            split.release()
        settings = ChatSettings(chat_template, chat_template_kwargs or {})
        family = family_of(folder, name)
        code = class_for(family, settings)
        check_files(folder)
        more = head_options(family, headed)
        model = code.load(folder, chosen, pick_dtype(dtype, chosen), split, settings, **more)
        if model.decoder is not None:
            longest = model.max_plain_positions if model.has_plain_path else model.max_positions
            keep_constant_tables(model.decoder, longest)
            fit(model.decoder, chosen, split=split is not None, compiled=compiled)
        if split is not None:
            model.is_split = True
            split.run_together(model)
        model.find_layers()
    if compiled and (why := compile_layers(model)) is not None:
        log.warning("the layers of %s are not compiled: %s", path, why)
        if model.decoder is not None:
            fuse(model.decoder, chosen, split=split is not None)
    return model


def _check_types(name: object, path: object, chat_template: object, kwargs: object) -> None:
    """Raise UserError for values of load_model that would fail deep inside it, by the name of the argument."""
    is_path = isinstance(path, str | os.PathLike)
    require(is_path, f"path must be a folder or a hub id, got {path!r}")
    for argument, value, kind, expected in (
        ("name", name, str, "a known model name, or None"),
        ("chat_template", chat_template, str, "the text of a template"),
        ("chat_template_kwargs", kwargs, Mapping, "a dict"),
    ):
        fits = value is None or isinstance(value, kind)
        require(fits, f"{argument} must be {expected}, got {type(value).__name__}")


def family_class(family: str) -> "type[ModelFamily]":
    """The class of a family, imported on first use."""
    return load(FAMILIES[family].code)


def class_for(family: str, chat: ChatSettings) -> "type[ModelFamily]":
    """The class of a family that is to go by these settings. Raises ModelError where it has a prompt of its own."""
    found = family_class(family)
    if chat and not found.takes_chat_settings:
        raise ModelError(
            f"the family {family} has a prompt of its own, so chat_template and chat_template_kwargs have no meaning; "
            "leave them out, or pass the model name auto where the checkpoint is in transformers' layout"
        )
    return found


def head_options(family: str, headed: bool) -> dict:
    """Only the family of transformers' models reads the head of a reward model. Raises ModelError for another one."""
    if headed and family != AUTO:
        raise ModelError(
            f"the family {family} reads no head of a reward model: pass the model name auto where the checkpoint is in "
            "transformers' layout"
        )
    return {"headed": True} if headed else {}
