"""The weights of a checkpoint of transformers: loaded by transformers itself, every missing or foreign one refused."""

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging as transformers_logging

from data_engine.models.auto.processor import load_config
from data_engine.models.registry import ModelError, reason

log = logging.getLogger(__name__)

# So many names are told.
TOLD = 3


def load_weights(folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model, whole. Raises ModelError where weights are missing, too many or of a wrong shape."""
    load_config(folder)
    where = {} if device.type == "cpu" else {"device_map": {"": device}}
    try:
        with quiet():
            model, told = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=True, **where
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(f"{folder} cannot be loaded ({type(error).__name__}: {reason(error)})") from error
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and its advice."""
    verbosity, had_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()
