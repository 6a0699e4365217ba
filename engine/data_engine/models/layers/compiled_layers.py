"""Layers of a decoder by torch.compile, in passes of answers: --compile_layers.

A layer of transformers is some forty small operations around its products. Compiled, norms, rotary embedding and
activation are a few kernels, which on a GPU takes a third of a layer's time away (docs/gpu-figures.md); the attention
stays what it is, since it goes by the layout in force. Prompts run by the layers as they are, so what they leave is
the same with and without.

Numbers of a compiled layer are rounded elsewhere, so the flag is bound. They must not depend on what a process happens
to compute first: one kernel serves all sizes, and is made for the same sizes in the same order when a model is loaded,
without a choice by measuring.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from data_engine.errors import UserError
from data_engine.models.base import VisionLanguageModel
from data_engine.models.checkpoints.json_files import reason
from data_engine.models.layers import attention
from data_engine.models.layers.answer_cache import answer_cache, is_recurrent
from data_engine.models.layers.attention import LayerCall, attending
from data_engine.models.layers.cpu_linear import PackedLinear

# Rows and tokens a row of the passes for which kernels are made: of steps of sampling, and of scoring. No width of a
# model has these sizes, of which torch would take it that the two are always equal.
MADE_FOR = ((67, 1), (1, 71))


class _OwnValue:
    """A layout in which each token sees itself alone."""

    describes_masks = True

    def attend(self, call: LayerCall) -> Tensor:
        return call.value.repeat_interleave(call.query.shape[1] // call.value.shape[1], 1)


def compile_layers(model: VisionLanguageModel, backend: str = "inductor") -> str | None:
    """Compile the layers of the decoder that attend, and make their kernels; or say why they stay as they are.

    Called behind find_layers. Raises UserError where torch cannot compile here.
    """
    why = _why_not(model)
    if why is not None:
        return why
    _keep_out_of_graphs()
    # Not in inductor's own configuration: torch sets that back behind each part of a layer that it compiles.
    options = {"deterministic": True} if backend == "inductor" else None
    for layer in layers_of(model):
        number_hooks(layer)
        compiled = torch.compile(layer.forward, dynamic=True, backend=backend, options=options)
        layer.forward = _in_answers(layer.forward, compiled)
    try:
        _make_kernels(model)
    # torch's compiler and those that it calls raise errors of their own.
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            f"--compile_layers is set, and torch cannot compile on this machine ({type(error).__name__}: "
            f"{reason(error)}): leave it out, or install what is missing (a C++ compiler on a CPU, Triton on a GPU)"
        ) from error
    return None


@functools.cache
def _keep_out_of_graphs() -> None:
    """Once a process: what is wrapped twice would be another function to the compiler."""
    attention.keep_out_of_graphs()
    # The compiler knows no product with a packed weight.
    PackedLinear.forward = torch.compiler.disable(PackedLinear.forward)


def layers_of(model: VisionLanguageModel) -> list[nn.Module]:
    """The members of the decoder's lists of layers in which a module attends, in their order."""
    lists = [module for module in model.decoder.modules() if isinstance(module, nn.ModuleList)]
    attends = set(model.attention_layers)
    return [layer for one in lists for layer in one if attends.intersection(layer.modules())]


def _why_not(model: VisionLanguageModel) -> str | None:
    if model.why_plain:
        return model.why_plain
    if model.is_split:
        return "the model is split over the ranks, whose weights are there for a layer at a time"
    if any(kind.cross for kind in model.layers):
        return "some of its layers look at image states"
    if any(map(is_recurrent, model.cache_layers)):
        return "some of its layers have a recurrent state"
    return None


def number_hooks(layer: nn.Module) -> None:
    """Number the hooks of each of its modules from 0, where torch counts through all modules: the same module of
    another layer would not be the same to the compiler.
    """
    for module in layer.modules():
        for hooks in (module._forward_hooks, module._forward_hooks_always_called):
            ordered = list(hooks.values())
            hooks.clear()
            hooks.update(enumerate(ordered))


def _in_answers(plain: Callable, compiled: Callable) -> Callable:
    """The compiled layer in passes of answers, else the other."""

    @functools.wraps(plain)
    def forward(*args, **options):
        return (compiled if attention.answers_pass() else plain)(*args, **options)

    return forward


@torch.inference_mode()
def _make_kernels(model: VisionLanguageModel) -> None:
    for rows, tokens in MADE_FOR:
        ids = torch.zeros(rows, tokens, dtype=torch.long, device=model.device)
        positions = torch.arange(tokens, device=model.device).repeat(rows, 1)
        with attending(_OwnValue(), model.attention_layers):
            model.run_answers(ids, positions, answer_cache(model.cache_layers, (), {}))
