"""The weights of a checkpoint of transformers: loaded by transformers itself, every missing or foreign one refused."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, modeling_utils
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging as transformers_logging

from data_engine.errors import LostRankError, UserError
from data_engine.models.auto.config import load_config
from data_engine.models.auto.parts import output_layer
from data_engine.models.auto.weights.merging import changes, merge
from data_engine.models.auto.weights.value_head import NAMES, others, stored_head
from data_engine.models.checkpoints.adapter import Adapter
from data_engine.models.checkpoints.adapter_folder import with_real_places
from data_engine.models.checkpoints.checkpoint import headers
from data_engine.models.checkpoints.json_files import ModelError, reason
from data_engine.models.checkpoints.weight_files import Stored, quantised_weight, some
from data_engine.models.internvl_chat import is_own_folder, weights
from data_engine.models.layers.attention import DoesNotFit
from data_engine.models.memory_errors import is_out_of_memory
from data_engine_kernels import CannotLaunch

log = logging.getLogger(__name__)

# As safetensors, or torch, spells them: weights in these are packed or scaled.
QUANTISED = re.compile(r"[UI]8|U32|F4|F[68]_.*|torch\.(u?int8|float8.*|float4.*)")


def check_weights(folder: Path, headed: bool = False) -> None:
    """Raise ModelError where weights are missing, of a wrong shape or quantised, by the headers of their files.

    Of a reward model, which is `headed`, those of its head too.
    """
    if is_own_folder(folder):
        weights.check_weights(folder, NAMES if headed else ())
        if headed:
            stored_head(folder, load_config(folder).get_text_config(decoder=True).hidden_size)
        return
    stored = _not_quantised(folder)
    config, adapter = load_config(folder), Adapter.of(folder)
    if headed:
        stored_head(folder, config.get_text_config(decoder=True).hidden_size)
    shapes = {name: torch.empty(one.shape, device="meta") for name, one in stored.items()}
    try:
        with quiet():
            model, told = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)].from_pretrained(
                None, config=config, state_dict=shapes, device_map={"": "meta"}, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
    # Whatever a model raises that is made without numbers: loading it says what is wrong, if anything is.
    except Exception:
        return
    _refuse_unfilled(folder, _of_reward_model(folder, model, told) if headed else told)
    if adapter is not None:
        changes(model, adapter)


def _not_quantised(folder: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint by name. Raises ModelError where one is quantised."""
    stored = headers(folder)
    for one in stored.values():
        if QUANTISED.fullmatch(one.dtype):
            raise quantised_weight(one)
    return stored


def load_weights(folder: Path, device: torch.device, dtype: torch.dtype, headed: bool = False) -> PreTrainedModel:
    """The model, whole. Raises ModelError where weights are missing, too many or of a wrong shape.

    A reward model, which is `headed`, may lack the head of its vocabulary. It holds nothing but its own weights
    and those of its head, which value_head.py reads.
    """
    config = load_config(folder)
    if is_own_folder(folder):
        return weights.load_weights(folder, device, dtype, NAMES if headed else ())
    # transformers would cast them without the numbers that they are scaled by.
    _not_quantised(folder)
    where = {} if device.type == "cpu" else {"device_map": {"": device}}
    try:
        with quiet(), tensor_by_tensor():
            model, told = AutoModelForImageTextToText.from_pretrained(
                folder, config=config, dtype=dtype, output_loading_info=True, local_files_only=True,
                ignore_mismatched_sizes=True, **where,
            )  # fmt: skip
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(f"{folder} cannot be loaded ({type(error).__name__}: {reason(error)})") from error
    if headed:
        told = _of_reward_model(folder, model, told)
    _refuse_unfilled(folder, told)
    if told["unexpected_keys"]:
        where = with_real_places(str(folder))
        log.warning("%s holds weights that the model does not use: %s", where, some(told["unexpected_keys"]))
    if (adapter := Adapter.of(folder)) is not None:
        merge(model, adapter)
    return model


def _of_reward_model(folder: Path, model: PreTrainedModel, told: Mapping) -> Mapping:
    """What transformers told of loading, without what is so in every reward model.

    Raises ModelError for a weight that the model does not use: a head of another kind would be left out.
    """
    if unused := others(told["unexpected_keys"]):
        raise ModelError(
            f"{folder} holds {some(unused)}, which neither the model nor the head of a reward model "
            f"({', '.join(NAMES)}) has"
        )
    output = output_layer(model)
    its = {id(parameter) for parameter in output.parameters()} if output is not None else set()
    absent = {name for name, parameter in model.named_parameters() if id(parameter) in its}
    return {**told, "missing_keys": set(told["missing_keys"]) - absent, "unexpected_keys": ()}


def _refuse_unfilled(folder: Path, told: Mapping) -> None:
    """Raise ModelError for parameters that no weight fills, by what transformers told of loading."""
    if missing := told["missing_keys"]:
        # Those of a compiled or wrapped model are all there, with a word before each name.
        others = f", and holds {some(found)} instead" if (found := told["unexpected_keys"]) else ""
        raise ModelError(f"{folder} lacks {some(missing)}{others}: these are not the weights of this config.json")
    wrong = [f"{name} of shape {list(stored)} where config.json makes it {list(made)}"
             for name, stored, made in told["mismatched_keys"]]  # fmt: skip
    if wrong:
        raise ModelError(f"{folder} holds {some(wrong)}: these are not the weights of this config.json")


@contextlib.contextmanager
def refusing_misfits(folder: Path) -> Iterator[None]:
    """Inside, what a model raises on a prompt of its own processor is a ModelError: the two do not belong together."""
    try:
        yield
    except (DoesNotFit, LostRankError, UserError):
        raise
    except CannotLaunch as error:
        raise UserError(str(error)) from error
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error) or "CUDA error" in str(error):
            raise
        raise ModelError(
            f"the model of {folder} cannot run a small prompt of its processor ({type(error).__name__}: "
            f"{reason(error)}): its files are not all of one checkpoint, or this transformers is too old or too new"
        ) from error


@contextlib.contextmanager
def tensor_by_tensor() -> Iterator[None]:
    """Inside, transformers does not take a GPU's memory for all weights in one piece before it loads them.

    What layers/merged_linear.py frees would lie between weights that stay, and could not be returned to the device:
    some 3 GB of a model of 7 billion weights.
    """
    before = modeling_utils.caching_allocator_warmup
    modeling_utils.caching_allocator_warmup = lambda *_: None
    try:
        yield
    finally:
        modeling_utils.caching_allocator_warmup = before


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
