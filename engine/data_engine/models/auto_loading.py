"""Weights of a checkpoint of transformers: loaded by transformers itself, every missing or foreign one refused."""

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging as transformers_logging

from data_engine.models.base import Split
from data_engine.models.registry import ModelError, reason
from data_engine.models.weight_files import check_files

log = logging.getLogger(__name__)

# So many names are told.
TOLD = 3


def load_weights(folder: Path, device: torch.device, dtype: torch.dtype, split: Split | None) -> PreTrainedModel:
    """The model, whole. Raises ModelError where weights are missing, too many or of a wrong shape."""
    if split is not None:
        raise ModelError(f"{folder}: models of the family auto cannot be split yet; set --zero3 off")
    check_checkpoint(folder)
    where = {} if device.type == "cpu" else {"device_map": {"": device}}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, told = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=True, **where
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(f"{folder} cannot be loaded ({type(error).__name__}: {reason(error)})") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    for what, names in (
        ("lacks", told["missing_keys"]),
        ("holds, of another shape than config.json says,", told["mismatched_keys"]),
    ):
        if names:
            raise ModelError(f"{folder} {what} {_some(names)}: these are not the weights of this config.json")
    if told["unexpected_keys"]:
        log.warning("%s holds weights that the model does not use: %s", folder, _some(told["unexpected_keys"]))
    return model


def _some(names: Iterable[object]) -> str:
    names = sorted(map(str, names))
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more


def check_checkpoint(folder: Path) -> None:
    """Raise ModelError for a configuration that is none, and for weight files that are not whole."""
    check_files(folder)
    try:
        AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"{folder / 'config.json'} cannot be read ({type(error).__name__}: {reason(error)})"
        ) from error
