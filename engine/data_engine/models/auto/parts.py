"""The parts of a model of transformers: its text decoder, its vision tower, its head, and what its layers keep."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from data_engine.models.layers.attention import NAME, DoesNotFit
from data_engine.models.layers.head import Head
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.layers.noting import Noted

# A score with so much added is that of a key that is not seen: models add the least number of their dtype, or -inf.
HIDES = -1e4


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """The text decoder without a head."""
    decoder = model.get_decoder()
    # Llama 4 gives the decoder with its head.
    if hasattr(decoder, "lm_head"):
        decoder = getattr(decoder, "model", decoder)
    # OPT's stands in a module of its own, past which it is called.
    while isinstance(decoder, PreTrainedModel) and (inner := decoder.get_decoder()) is not decoder:
        decoder = inner
    if decoder is None or decoder is model or hasattr(decoder, "lm_head"):
        raise DoesNotFit("it does not say which part of it is the text decoder")
    return decoder


def find_vision(model: PreTrainedModel) -> nn.Module | None:
    """The vision tower: the outermost module with the vision configuration, or the one of those that is for images."""
    config = getattr(model.config, "vision_config", None)
    found = [module for module in model.modules() if getattr(module, "config", model) is config]
    # Video-LLaVA has one for films before it, with the same configuration.
    for_images = model.get_encoder(modality="image")
    return for_images if for_images in found else next(iter(found), None)


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """The members of its outermost lists of modules, those of towers too, that have parts themselves."""
    for child in module.children():
        members = child if isinstance(child, nn.ModuleList) else layers(child)
        yield from (member for member in members if next(member.children(), None) is not None)


def prompt_cache(config: PretrainedConfig, device: torch.device) -> DynamicCache:
    """An empty cache for the decoder with this configuration."""
    cache = DynamicCache(config=config)
    for layer in cache.layers:
        # A number of the host, which each layer with a window would send, and wait for.
        if isinstance(window := getattr(layer, "_sliding_window_tensor", None), Tensor):
            layer._sliding_window_tensor = torch.full((), layer.sliding_window, dtype=window.dtype, device=device)
    return cache


class Attention:
    """By what the decoder's layers, and nothing else, attend: attention.NAME, unless they are to by the model's own."""

    def __init__(self, decoder: nn.Module) -> None:
        configs = {id(config): config for module in decoder.modules() if (config := getattr(module, "config", None))}
        self._own = [(config, config._attn_implementation) for config in configs.values()]
        self._by_hook()

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """The model's own, on whose name its code may depend.

        MiniMax M3 makes no mask of the keys that it chose for a name that it does not know.
        """
        for config, name in self._own:
            config._attn_implementation = name
        try:
            yield
        finally:
            self._by_hook()

    def _by_hook(self) -> None:
        for config, _ in self._own:
            config._attn_implementation = NAME


def output_layer(model: PreTrainedModel) -> nn.Module | None:
    """What makes logits of hidden states; it may be a part of what the model has as its text decoder."""
    return model.get_output_embeddings() or getattr(model.get_decoder(), "lm_head", None)


def output_weights(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    layer = output_layer(model)
    if not isinstance(layer, nn.Linear):
        raise DoesNotFit("its output layer is not a linear one")
    return layer.weight, layer.bias


def fitted_head(head: Head, hidden_D: Tensor, logits_V: Tensor, config: object) -> Head:
    """The head that gives the model's own logits: some configurations name a scale that their model does not apply, and
    some models never say some tokens.

    Raises DoesNotFit where none does.
    """
    scales = [1.0]
    for name in ("logit_scale", "logits_scaling", "output_multiplier"):
        # Granite divides by the second, HyperCLOVA X multiplies.
        if value := getattr(config, name, None):
            scales += [value, 1 / value]
    caps = [None, *filter(None, [getattr(config, "final_logit_softcapping", None)])]
    unsaid_V = logits_V <= torch.finfo(logits_V.dtype).min
    never = unsaid_V.nonzero()[:, 0] if unsaid_V.any() else None
    heads = [Head(head.weight, head.bias, scale, cap, never) for scale, cap in itertools.product(scales, caps)]
    off = [difference(found.logits(hidden_D[None])[0, ~unsaid_V], logits_V[~unsaid_V]) for found in heads]
    # The nearest: a cap changes small logits by less than rounding does.
    nearest = off.index(min(off))
    if not off[nearest] <= (1e-4 if head.weight.dtype == torch.float32 else 3e-2):
        raise DoesNotFit(
            "its logits are not those of its output layer, nor a scale or a cap of config.json away from them"
        )
    return heads[nearest]


def difference(found: Tensor, expected: Tensor) -> float:
    """How far a tensor is from another one, as a share of that one's norm.

    Not number by number: of millions that are rounded in bf16 some are far off, and a wrong tensor is as a whole.
    """
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / expected.norm())


def layer_kinds(noted: Mapping[int, Noted]) -> list[LayerKind]:
    """What each layer keeps, by what a prompt left in it; one that uses another's keys was handed the same tensors."""
    kinds, places = [], {}
    first_bias = next((one.bias for one in noted.values() if one.cross), None)
    for number in range(len(noted)):
        keys, values, cross, bias = noted[number]
        # Not data_ptr: tensors on the meta device have none.
        place = tuple((part.untyped_storage()._cdata, part.storage_offset()) for part in (keys, values))
        weighs = cross and not _only_hides(bias, first_bias)
        kinds.append(
            LayerKind(keys.shape[0], keys.shape[-1], values.shape[-1], cross, places.get(place), weighs=weighs)
        )
        places.setdefault(place, number)
    return kinds


def _only_hides(bias: Tensor | None, first: Tensor | None) -> bool:
    """Whether it hides the image states that the first layer's does, and does nothing else."""
    if bias is None or first is None:
        return bias is first
    return bool((((bias == 0) | (bias <= HIDES)) & (bias == first)).all())
