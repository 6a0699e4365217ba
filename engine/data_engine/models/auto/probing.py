"""What the layers of a model of transformers are, found by running a small prompt.

Shapes: G key/value heads, P prompt tokens, D head width.
"""

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from data_engine.errors import BadRow
from data_engine.models.auto.parts import difference, fitted_head, layer_kinds
from data_engine.models.base import Prompt, PromptEnd, VisionLanguageModel
from data_engine.models.checkpoints.json_files import reason
from data_engine.models.layers.answer_cache import answer_cache, repeated
from data_engine.models.layers.attention import DoesNotFit, attending
from data_engine.models.layers.head import Head
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.layers.noting import Asking, Finding
from data_engine.models.layers.prefix import Prefix, run_prefix, run_prefixes
from data_engine.questions.conversation import Conversation

log = logging.getLogger(__name__)

QUESTION = "What is in the picture?"
# Several merged patches in both directions, whatever the patch size.
SIZE = (112, 84)
# Most that rounding makes of a tensor, as a share of its norm: bf16 gave 1.5 % behind 28 layers of products that were
# summed in another order. Another picture, or none, changes what stands in its place by as much as it is.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
# A token is changed by more where its neighbours behind it matter.
AHEAD = 0.02


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
    crosses = {number: (one.keys[None], one.values[None]) for number, one in finding.noted.items() if one.cross}
    kinds = list(_as_asked(model, layers, kinds, end, crosses))
    return Found(layers, tuple(kinds), end.cache_layers, head)


def _as_asked(
    model: Probed,
    layers: Mapping[nn.Module, int],
    kinds: Sequence[LayerKind],
    end: PromptEnd,
    crosses: dict[int, tuple[Tensor, Tensor]],
) -> Iterator[LayerKind]:
    """The layers with what a first token behind the prompt shows of them."""
    asking = Asking()
    one = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    cache = answer_cache(end.cache_layers, repeated(end.cache_layers, 1), crosses)
    with attending(asking, layers):
        model.run_answers(one, one + end.next_position, cache)
    for number, kind in enumerate(kinds):
        call = asking.calls[number]
        call.require_known()
        mask = None if kind.cross else call.seen(sys.maxsize)
        yield replace(kind, sinks=call.sinks is not None, window=mask and mask.window,
                      slides=bool(mask and mask.sliding))  # fmt: skip


@torch.inference_mode()
def encodes_together(model: Probed) -> bool:
    """Whether the tower takes images of several prompts at a time, and the model takes what it makes of them.

    Tried with a picture and the same upside down: where a model cannot, or other numbers come of it, each prompt runs
    whole.
    """
    if not takes_features():
        return False
    prompt = _prompt(model, QUESTION)
    try:
        pixels = prompt.inputs["pixel_values"]
        turned = replace(prompt, inputs=prompt.inputs | {"pixel_values": pixels.flip(-2)})
        prompts = [turned, prompt]
        together = list(model.encoded_together(prompts))
        if any(one.features is None for one in together):
            return False
        found, own = ([run_prefix(model, one) for one in each] for each in (together, prompts))
    except torch.OutOfMemoryError:
        raise
    # Whatever a model raises that is called in a way that it does not know.
    except Exception:
        return False
    return _differ_by_rounding(model, found, own)


@functools.cache
def takes_features() -> bool:
    """Whether transformers' models take images that were encoded beforehand; told once where they do not."""
    found = hasattr(transformers.GenerationMixin, "_supports_mm_encoder_outputs")
    if not found:
        log.warning(
            "images of a scoring pass go through the vision tower one by one: transformers %s takes none that were "
            "encoded beforehand, and 5.23 does", transformers.__version__,
        )  # fmt: skip
    return found


@torch.inference_mode()
def packs(model: Probed) -> bool:
    """Whether prompts in one row of the decoder leave what each leaves alone: two about a picture, and, where the model
    takes it, one without.
    """
    prompts = [_prompt(model, QUESTION), _prompt(model, f"Which {QUESTION}")]
    with contextlib.suppress(BadRow):
        prompts.insert(1, model.prompt_without_images(Conversation.of(QUESTION)))
    try:
        together = run_prefixes(model, prompts, sum(prompt.length for prompt in prompts))
    except torch.OutOfMemoryError:
        raise
    # Whatever a model raises that is called in a way that it does not know.
    except Exception as error:
        log.info("prompts run one by one (%s: %s)", type(error).__name__, reason(error))
        return False
    alone = [run_prefix(model, prompt) for prompt in prompts]
    if any(found.end.next_position != own.end.next_position for found, own in zip(together, alone, strict=True)):
        return False
    return _differ_by_rounding(model, together, alone)


@torch.inference_mode()
def reads_ahead(model: Probed) -> bool:
    """Whether another token in a prompt changes what the layers keep of those before it.

    The prompts are equally long, so that what does not depend on it has the same bits, or nearly where experts are
    chosen by all tokens.
    """
    prompt, other = _prompt(model, QUESTION), _prompt(model, f"Which {QUESTION}")
    # InstructBLIP's Q-Former looks at the picture in the light of the text, which it is given by itself.
    if not all(torch.equal(value, other.inputs[name]) for name, value in _beside_tokens(prompt)):
        return True
    ids, others = (one.inputs["input_ids"][0] for one in (prompt, other))
    place = next(place for place, both in enumerate(zip(ids, others, strict=False)) if both[0] != both[1])
    changed = ids.clone()
    changed[place] = others[place]
    before = []
    for one in (ids, changed):
        # The last layer that looks at tokens.
        *_, values, _ = _left(model, replace(prompt, inputs=prompt.inputs | {"input_ids": one[None]}))
        before.append(values[:, :place].transpose(0, 1))
    return any(difference(*both) > AHEAD for both in zip(*before, strict=True))


def _beside_tokens(prompt: Prompt) -> Iterator[tuple[str, Tensor]]:
    """The inputs of a prompt that are not of a value for each token."""
    return ((name, value) for name, value in prompt.inputs.items() if value.shape[:2] != (1, prompt.length))


def _differ_by_rounding(model: Probed, found: Sequence[Prefix], own: Sequence[Prefix]) -> bool:
    """Whether what prompts left is what they leave otherwise, but for rounding."""
    kept = [[tensor for prefix in each for tensor in _kept(prefix)] for each in (found, own)]
    return all(difference(*both) <= ROUNDING[model.dtype] for both in zip(*kept, strict=True))


def _left(model: Probed, prompt: Prompt) -> list[Tensor]:
    return _kept(run_prefix(model, prompt))


def _kept(prefix: Prefix) -> list[Tensor]:
    """What a prompt leaves: the values [G, P, D] of each layer that looks at tokens, and its last hidden state.

    Values, since keys may have a bias beside which all else is small.
    """
    return [*(one.values for _, one in sorted(prefix.layers.items()) if not one.cross), prefix.end.hidden_D]


def _prompt(model: Probed, text: str) -> Prompt:
    picture = Image.linear_gradient("L").resize(SIZE).convert("RGB")
    return model.prompt(Conversation.of(text), [picture], True, 64)
