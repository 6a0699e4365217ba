"""Weights of InternVL's own layout into transformers' InternVL: renamed, split and put together tensor by tensor.

Each is mapped from its file, cast on the device, and unmapped, so that the weights are held once. An adapter was
trained on InternVL's own modules, so that it changes a tensor before that is split.

Shapes: W the tower's width.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, InternVLConfig
from transformers.modeling_utils import PreTrainedModel

from data_engine.models.checkpoints.adapter import Adapter, Change
from data_engine.models.checkpoints.checkpoint import headers, tensors
from data_engine.models.checkpoints.json_files import ModelError, read_json
from data_engine.models.checkpoints.model_config import check_layers, on_meta
from data_engine.models.checkpoints.weight_files import FLOATS, Stored, quantised_weight, some
from data_engine.models.internvl_chat.config import decoder_of, read_config
from data_engine.models.internvl_chat.decoders import Decoder, Placing, Target

_VISION_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
_VISION_PARTS = (
    ("attn.proj.", "attention.projection_layer."), ("attn.q_norm.", "attention.q_norm."),
    ("attn.k_norm.", "attention.k_norm."), ("norm1.", "layernorm_before."), ("norm2.", "layernorm_after."),
    ("mlp.fc1.", "mlp.fc1."), ("mlp.fc2.", "mlp.fc2."), ("ls1", "lambda_1"), ("ls2", "lambda_2"),
)  # fmt: skip
_TOWER, _PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."
# Of which one tensor is both where they are tied.
_EMBEDDINGS_AND_HEAD = ("model.language_model.embed_tokens.weight", "lm_head.weight")
_OTHERS = (
    ("vision_model.embeddings.class_embedding", f"{_TOWER}embeddings.cls_token"),
    ("vision_model.embeddings.patch_embedding.", f"{_TOWER}embeddings.patch_embeddings.projection."),
    ("vision_model.embeddings.position_embedding", f"{_TOWER}embeddings.position_embeddings"),
    ("mlp1.0.", f"{_PROJECTOR}layer_norm."), ("mlp1.1.", f"{_PROJECTOR}linear_1."),
    ("mlp1.3.", f"{_PROJECTOR}linear_2."),
    ("language_model.lm_head.", "lm_head."), ("language_model.model.", "model.language_model."),
)  # fmt: skip
# Tables of old LLaMAs, which are computed.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$")
# Of what chooses how many tokens a tile becomes. Source: InternVLChatModel of InternVL3.5-Flash.
_FLASH = ("mlp2.", "gating.", "pooling_before_gating.")


@dataclass
class Plan:
    """Transformers' model without numbers, and where each stored tensor goes. What a check and loading share."""

    folder: Path
    model: PreTrainedModel
    files: dict[Path, dict[str, Placing]] = field(default_factory=dict)
    """by file, by the stored name"""
    changes: Mapping[str, Change] = field(default_factory=dict)
    """what an adapter does, by the stored name"""


def check_weights(folder: Path, others: Collection[str] = ()) -> None:
    """Raise ModelError for what `load_weights` would refuse, by the headers of the files."""
    _planned(folder, torch.float32, others)


def load_weights(
    folder: Path, device: torch.device, dtype: torch.dtype, others: Collection[str] = ()
) -> PreTrainedModel:
    """The model, whole; `others` are names of weights that are none of its own, of a reward model's head.

    Raises ModelError where weights are missing, unknown, or of a wrong shape.
    """
    plan = _planned(folder, dtype, others)
    for file, placings in plan.files.items():
        for name, value in tensors(file, placings):
            if name in plan.changes:
                value = plan.changes[name](value.to(device))
            _fill(plan.model, placings[name], value, device, dtype)
    for owner in plan.model.modules():
        for name, value in list(owner.named_buffers(recurse=False)):
            owner._buffers[name] = value.to(device)
    # A tied head is still the embeddings without numbers.
    plan.model.tie_weights()
    return plan.model.eval()


def place(name: str, decoder: Decoder, config: InternVLConfig) -> Placing | None:
    """Where a stored tensor goes; None where InternVL's layout has no such name."""
    vision = _VISION_LAYER.fullmatch(name)
    if vision is not None:
        return _in_tower(f"{_TOWER}encoder.layer.{vision[1]}.", vision[2])
    text = name.removeprefix("language_model.")
    if text != name and decoder.place is not None:
        placing = decoder.place(text, config.text_config)
        if placing is not None or decoder.names_all:
            return placing
    new = _renamed(name, _OTHERS)
    return None if new is None else Placing((Target(new),))


def _in_tower(layer: str, part: str) -> Placing | None:
    for leaf in ("weight", "bias"):
        if part == f"attn.qkv.{leaf}":
            # Rows [3 W]: queries, keys, values. Source: InternAttention of InternVL's repository.
            names = (f"{layer}attention.{one}_proj.{leaf}" for one in "qkv")
            return Placing(tuple(map(Target, names)), lambda value: value.chunk(3))
    new = _renamed(part, _VISION_PARTS)
    return None if new is None else Placing((Target(f"{layer}{new}"),))


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    found = next(((old, new) for old, new in table if name.startswith(old)), None)
    return None if found is None else found[1] + name.removeprefix(found[0])


def _planned(folder: Path, dtype: torch.dtype, others: Collection[str]) -> Plan:
    """Raises ModelError for a tensor that has no place, one of a wrong shape or dtype, and a parameter left empty."""
    where = folder / "config.json"
    stored = {name: one for name, one in headers(folder).items() if name not in others}
    config = read_config(folder)
    decoder, _ = decoder_of(read_json(where), where)
    for part in (config.text_config, config.vision_config):
        check_layers(part.num_hidden_layers, len(stored), where)
    plan = Plan(folder, on_meta(where, lambda: AutoModelForImageTextToText.from_config(config, dtype=dtype)))
    parameters = dict(plan.model.named_parameters())
    tied = {"lm_head.weight"} - set(parameters)
    filled: dict[Target, Stored] = {}
    for one in stored.values():
        placing = place(one.name, decoder, config)
        if _IGNORED.search(one.name) or (placing and placing.targets[0].name in tied):
            continue
        if one.name.startswith(_FLASH):
            raise ModelError(f"weight {one} is of the router of an InternVL3.5-Flash, which is not supported")
        if placing is None or any(target.name not in parameters for target in placing.targets):
            raise ModelError(
                f"unexpected weight {one}: no part of an InternVL 1.5, 2, 2.5, 3 or 3.5 with this config.json has it"
            )
        _check(one, placing, parameters)
        for target in placing.targets:
            first = filled.setdefault(target, one)
            if first is not one:
                raise ModelError(f"{one} and {first} are the same weight by two names: remove one")
        plan.files.setdefault(one.file, {})[one.name] = placing
    _refuse_unfilled(folder, parameters, filled)
    if (adapter := Adapter.of(folder)) is not None:
        plan.changes = _changes(plan, stored, adapter, bool(tied))
    return plan


def _changes(plan: Plan, stored: Mapping[str, Stored], adapter: Adapter, is_tied: bool) -> dict[str, Change]:
    """By the stored name. Raises ModelError where the adapter is not of these modules."""
    placings = {name: placing for placed in plan.files.values() for name, placing in placed.items()}
    both = (name for name, placing in placings.items() if placing.targets[0].name in _EMBEDDINGS_AND_HEAD)
    shapes = {name: stored[name].shape for name in placings}
    return adapter.changes(shapes, lambda name: name, tied=set(both) if is_tied else ())


def _check(one: Stored, placing: Placing, parameters: Mapping[str, nn.Parameter]) -> None:
    if one.dtype not in FLOATS:
        raise quantised_weight(one)
    try:
        shapes = [parameters[target.name][target.index].shape for target in placing.targets]
    except IndexError as error:
        raise ModelError(f"unexpected weight {one}: config.json has fewer experts") from error
    # Parts of a split one follow each other along the first dimension.
    made = [sum(shape[0] for shape in shapes), *shapes[0][1:]]
    if list(one.shape) != made:
        raise ModelError(f"weight {one} has shape {list(one.shape)}, config.json makes it {made}")


def _refuse_unfilled(folder: Path, parameters: Mapping[str, nn.Parameter], filled: Mapping[Target, Stored]) -> None:
    there = dict.fromkeys(parameters, 0)
    for target in filled:
        there[target.name] += math.prod(parameters[target.name][target.index].shape)
    missing = [name for name, number in there.items() if number < parameters[name].numel()]
    if missing:
        raise ModelError(
            f"{folder} lacks weights for {some(missing)} (transformers' names): these are not the weights of this "
            "config.json"
        )


def _fill(model: PreTrainedModel, placing: Placing, value: Tensor, device: torch.device, dtype: torch.dtype) -> None:
    parts = [value] if placing.split is None else placing.split(value)
    for target, part in zip(placing.targets, parts, strict=True):
        owner, _, leaf = target.name.rpartition(".")
        module = model.get_submodule(owner)
        there = getattr(module, leaf)
        if there[target.index].shape != part.shape:
            raise ModelError(
                f"the weights for {target.name} changed while they were read: start again when they are whole"
            )
        if not target.index:
            whole = part.to(device, dtype, copy=True).contiguous()
            setattr(module, leaf, nn.Parameter(whole, requires_grad=False))
            continue
        if there.is_meta:
            there = nn.Parameter(torch.empty(there.shape, device=device, dtype=dtype), requires_grad=False)
            setattr(module, leaf, there)
        there.data[target.index] = part.to(device, dtype)
