"""What the layers of a model of transformers are, found by running a small prompt.

Shapes: G key/value heads, P prompt tokens, D head width.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from data_engine.models.answer_cache import answer_cache, repeated
from data_engine.models.attention import Asking, DoesNotFit, Finding, Noting, attending
from data_engine.models.auto.parts import fitted_head, layer_kinds
from data_engine.models.base import Prompt, PromptEnd, VisionLanguageModel
from data_engine.models.head import Head
from data_engine.models.layer_kind import LayerKind
from data_engine.questions.conversation import Conversation

QUESTION = "What is in the picture?"
# Several merged patches in both directions, whatever the patch size.
SIZE = (112, 84)


class Probed(VisionLanguageModel, Protocol):
    """What a prompt is run on."""

    text_config: object
    """of the decoder"""

    def run_with_logits(self, prompt: Prompt) -> tuple[PromptEnd, Tensor]:
        """The end of a prompt, and the model's logits there [V]."""

    def encoded_together(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """As VisionLanguageModel.encoded, whether or not it is known that the tower takes them so."""


class Found(NamedTuple):
    """What a prompt showed; see VisionLanguageModel."""

    attention_layers: Mapping[nn.Module, int]
    layers: Sequence[LayerKind]
    cache_layers: Sequence[object]
    head: Head


class Shown(NamedTuple):
    """What running a prompt left behind."""

    finding: Finding
    end: PromptEnd
    logits_V: Tensor


@torch.inference_mode()
def run_prompt(model: Probed) -> Shown:
    """Run a small prompt, whose layers are numbered on the way."""
    prompt = _prompt(model, QUESTION)
    finding = Finding(prompt.length, set(model.decoder.modules()))
    with attending(finding, finding.layers):
        return Shown(finding, *model.run_with_logits(prompt))


@torch.inference_mode()
def layers_of(model: Probed, shown: Shown) -> Found:
    """The modules that attend, what they keep, and what the model does with its logits.

    Raises DoesNotFit where answers cannot share a prompt, and whatever a decoder raises that cannot be called alone.
    """
    finding, end, logits_V = shown
    if not finding.noted:
        raise DoesNotFit("no layer of its decoder attends through transformers' attention interface")
    layers, kinds = dict(finding.layers), layer_kinds(finding.noted)
    head = fitted_head(model.head, end.hidden_D, logits_V, model.text_config)
    # Layers for image states run behind a prompt with images alone, and never by the kernels.
    if not any(kind.cross for kind in kinds):
        kinds = list(_as_asked(model, layers, kinds, end))
    return Found(layers, tuple(kinds), end.cache_layers, head)


def _as_asked(
    model: Probed, layers: Mapping[nn.Module, int], kinds: Sequence[LayerKind], end: PromptEnd
) -> Iterator[LayerKind]:
    """The layers with what a first token behind the prompt shows of them."""
    asking = Asking()
    one = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    cache = answer_cache(end.cache_layers, repeated(end.cache_layers, 1), {})
    with attending(asking, layers):
        model.run_answers(one, one + end.next_position, cache)
    for number, kind in enumerate(kinds):
        call = asking.calls[number]
        call.require_known()
        mask = call.seen(sys.maxsize)
        yield replace(kind, sinks=call.sinks is not None, window=mask and mask.window,
                      slides=bool(mask and mask.sliding))  # fmt: skip


@torch.inference_mode()
def encodes_together(model: Probed) -> bool:
    """Whether the tower takes images of several prompts at a time, and the model takes what it makes of them.

    Tried with a picture and its mirror image: where a model cannot, or gives other numbers, each prompt runs whole.
    """
    prompt = _prompt(model, QUESTION)
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    try:
        pixels = prompt.inputs["pixel_values"]
        mirrored = replace(prompt, inputs=prompt.inputs | {"pixel_values": pixels.flip(-1)})
        prompts = [mirrored, prompt]
        together = list(model.encoded_together(prompts))
        if any(one.features is None for one in together):
            return False
        ends = [[model.run_prompt(one).hidden_D.float() for one in each] for each in (prompts, together)]
    except torch.OutOfMemoryError:
        raise
    # Whatever a model raises that is called in a way that it does not know.
    except Exception:
        return False
    return all(torch.allclose(*both, rtol=tolerance, atol=tolerance) for both in zip(*ends, strict=True))


def reads_ahead(model: Probed) -> bool:
    """Whether a longer text behind a prompt's image changes the keys of what stands before it."""
    short, long = (_last_keys(model, text) for text in (QUESTION, f"{QUESTION} Which of them is it?"))
    # By tokens that both begin with: the texts differ at the end.
    common = min(short.shape[1], long.shape[1]) // 2
    return not torch.allclose(short[:, :common], long[:, :common], rtol=1e-2, atol=1e-2)


def _last_keys(model: Probed, text: str) -> Tensor:
    """Keys [G, P, D] of the last layer that looks at tokens."""
    prompt = _prompt(model, text)
    noting = Noting(prompt.length)
    with attending(noting, model.attention_layers):
        model.run_prompt(prompt)
    return [one.keys for _, one in sorted(noting.noted.items()) if not one.cross][-1].float()


def _prompt(model: Probed, text: str) -> Prompt:
    picture = Image.linear_gradient("L").resize(SIZE).convert("RGB")
    return model.prompt(Conversation.of(text), [picture], True, 64)
