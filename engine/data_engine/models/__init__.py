"""Model families. `load_model` is the public way in; registry.py has the table, one file a family the rest."""

from typing import TYPE_CHECKING

from data_engine.models.registry import FAMILIES, family_of, resolve
from data_engine.tables import load

if TYPE_CHECKING:
    from data_engine.models.base import ModelFamily, Split, VisionLanguageModel


def load_model(
    name: str | None,
    path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    split: "Split | None" = None,
) -> "VisionLanguageModel":
    """Load a checkpoint, weights held once, ready for sample_answers and score_answers.

    `name` is a known model name, or None to go by config.json; `device` "auto" is cuda if there is one; `dtype` "auto"
    is bfloat16 on cuda and float32 elsewhere. With `split`, all ranks load at the same time, and each keeps a share.
    Raises ModelError, a ValueError, naming what is wrong.
    """
    from data_engine.models.base import pick_device, pick_dtype
    from data_engine.models.cpu_linear import pack_linears

    folder = resolve(path, revision)
    chosen = pick_device(device)
    if split is not None:
        split.release()
    model = family_class(family_of(folder, name)).load(folder, chosen, pick_dtype(dtype, chosen), split)
    pack_linears(model.decoder, once=split is None)
    if split is not None:
        model.is_split = True
        split.run_together(model)
    return model


def family_class(family: str) -> "type[ModelFamily]":
    """The class of a family, imported on first use."""
    return load(FAMILIES[family].code)
