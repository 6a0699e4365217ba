"""A model of transformers split over the ranks: which of its weights are divided, and how they get there.

Rank 0 reads the model into its host's memory; weight by weight, all ranks then take their shares, or a copy. The
decoder and the vision tower are divided. Embeddings, head and whatever connects tower and decoder, which are used
between calls, stay whole on each rank.
"""

from collections.abc import Iterator
from pathlib import Path

import accelerate
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import PreTrainedModel

from data_engine.models.auto.config import load_config
from data_engine.models.auto.parts import find_decoder, find_vision
from data_engine.models.auto.sizes import are_known, cache_sizes, text_calls_all
from data_engine.models.auto.weights.loading import load_weights
from data_engine.models.base import Split
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.layers.linear_uses import with_weights_read


def check_split(folder: Path) -> None:
    """Raise ModelError for a model that cannot be split over ranks."""
    text = load_config(folder).get_text_config(decoder=True)
    kind = None
    if not are_known(folder):
        kind = "of which it is not known what they keep"
    elif cache_sizes(folder).per_answer:
        kind = "with a recurrent state"
    # Without an image they do not run, and ranks must run the same layers.
    elif getattr(text, "cross_attention_layers", None):
        kind = "for image states"
    # A weight is put together where its module is called; ranks must call the same ones, and an idle one runs a text.
    elif not text_calls_all(folder):
        kind = "that a text alone does not call"
    if kind is not None:
        raise ModelError(
            f"{folder} has layers {kind}: such models are not split over ranks; set --zero3 off, or choose a model all "
            "of whose layers attend to the prompt"
        )


def whole_modules(part: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(owner, name) of the modules inside a split part whose weights stay whole: embeddings, which are used outside of
    its calls as well, and those that their owner reads itself.
    """
    read_elsewhere = with_weights_read(part)
    for owner in list(part.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.Embedding) or child in read_elsewhere:
                yield owner, name


def load_split(
    folder: Path, device: torch.device, dtype: torch.dtype, split: Split, headed: bool = False
) -> PreTrainedModel:
    """The model with this rank's share of each divided weight. All ranks call it at the same time."""
    if split.reads:
        model = load_weights(folder, torch.device("cpu"), dtype, headed)
    else:
        # Buffers are real: those that no file holds are computed here.
        with accelerate.init_empty_weights(include_buffers=False):
            model = AutoModelForImageTextToText.from_config(load_config(folder), dtype=dtype)
    divided = _divided(model)
    # Rank 0 alone knows: where a checkpoint holds two that differ, transformers ties none, whatever config.json says.
    is_tied = len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters()))
    is_tied = bool(_same(torch.tensor([is_tied], device=device)))
    for owner in list(model.modules()):
        for name, value in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, _placed(value, value in divided, device, split))
        for name, value in list(owner.named_buffers(recurse=False)):
            owner._buffers[name] = _same(value.to(device))
    # A tied head is the embeddings' weight again, of which each was made one of its own.
    if is_tied:
        model.tie_weights()
    return model


def _divided(model: PreTrainedModel) -> set[nn.Parameter]:
    parts = [find_decoder(model), *filter(None, [find_vision(model)])]
    found = {parameter for part in parts for parameter in part.parameters()}
    whole = {
        parameter
        for part in parts
        for owner, name in whole_modules(part)
        for parameter in getattr(owner, name).parameters()
    }
    return found - whole


def _placed(value: nn.Parameter, divided: bool, device: torch.device, split: Split) -> nn.Parameter:
    mine = value.data.to(device) if split.reads else torch.empty(value.shape, device=device, dtype=value.dtype)
    return split.divide(mine) if divided else nn.Parameter(_same(mine), requires_grad=False)


def _same(value: Tensor) -> Tensor:
    """Rank 0's value on every rank."""
    value = value.contiguous()
    dist.broadcast(value, 0)
    return value
