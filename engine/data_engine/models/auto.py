"""Any AutoModelForImageTextToText of transformers: its own forward for a prompt, its text decoder for the answers.

Vision tower, splicing, positions and masks of a prompt are the model's. What its decoder's layers are is found by
running a small prompt once when it is loaded. A model that cannot share its prompts says so in `why_plain`.

Shapes: P prompt tokens, K rows, T tokens, V vocabulary, D width.
"""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_utils import PreTrainedModel

from data_engine.errors import BadRow
from data_engine.models.answer_cache import PassingLayer, is_recurrent, mapped
from data_engine.models.attention import NAME, DoesNotFit, Finding, Noted, attending
from data_engine.models.auto_limits import fast_positions
from data_engine.models.auto_loading import check_checkpoint, load_weights
from data_engine.models.base import LayerKind, PlainSteps, PromptEnd, Split, sent
from data_engine.models.chat import Chat, ChatSettings
from data_engine.models.head import Head
from data_engine.questions.conversation import Conversation
from data_engine.questions.images import BadImage, check_megapixels, resized_size

# A prompt that shows what a model's layers are. Its picture makes several merged patches, whatever the patch size.
PROBE = Conversation.of("What is in the picture?")
PROBE_SIZE = (112, 84)
# Processors take an array with a side of 1 or 3 for one whose channels come first.
LEAST_SIDE = 4


@dataclass(frozen=True)
class ProcessedPrompt:
    """What the model's own processor made of a conversation and its images, a batch of one."""

    inputs: Mapping[str, Tensor]

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


class Auto:
    """One checkpoint of transformers; the protocol is models.base.VisionLanguageModel."""

    family = "auto"
    is_split = False
    has_plain_path = True

    def __init__(self, model: PreTrainedModel, chat: Chat) -> None:
        self._model, self.chat = model.eval(), chat
        self.device, self.dtype = model.device, model.dtype
        self.eos_token_ids, self.banned_token_ids = chat.eos_token_ids, chat.banned_token_ids
        self.markers, self.vocabulary = chat.markers, chat.vocabulary
        self.vision = find_vision(model)
        self.num_ids = model.get_input_embeddings().num_embeddings
        text = model.config.get_text_config(decoder=True)
        self._positions, self._fast_positions = text.max_position_embeddings, fast_positions(text)
        self.attention_layers: Mapping[nn.Module, int] = {}
        self.layers: Sequence[LayerKind] = ()
        self.cache_layers: Sequence[object] = ()
        self.why_plain: str | None = None
        self._last: dict[str, Tensor] = {}
        try:
            self.decoder = find_decoder(model)
            self.head = Head(*_output_weights(model))
            # Mllama embeds its image token, and has no logit for it.
            self.num_ids = min(self.num_ids, len(self.head.weight))
            attend_by_hook(model, self.decoder)
            self.decoder.register_forward_pre_hook(self._note_positions, with_kwargs=True)
            self.decoder.register_forward_hook(self._note_hidden)
            self._find_layers()
        except DoesNotFit as reason:
            self.why_plain = str(reason)

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        split: Split | None = None,
        chat: ChatSettings | None = None,
    ) -> "Auto":
        """Read a checkpoint folder; raises ModelError naming what is missing, unexpected or contradictory."""
        return cls(load_weights(folder, device, dtype, split), Chat.load(folder, chat or ChatSettings()))

    @classmethod
    def check(cls, folder: Path) -> None:
        """Raise ModelError for what `load` would refuse, as can be seen without reading the weights."""
        check_checkpoint(folder)

    @property
    def max_positions(self) -> int:
        return self._positions if self.why_plain else min(self._positions, self._fast_positions)

    def prompt(
        self, conversation: Conversation, images: Sequence[Image.Image], crop: bool, max_megapixels: float
    ) -> ProcessedPrompt:
        for image in images:
            self._check_size(image, max_megapixels)
        if not images and any(kind.cross for kind in self.layers):
            raise BadRow("this model looks at its image in layers of their own, and the row has none")
        return ProcessedPrompt(self.chat.inputs(conversation, images))

    def _check_size(self, image: Image.Image, max_megapixels: float) -> None:
        check_megapixels(*image.size, max_megapixels, "source image")
        if min(image.size) < LEAST_SIDE:
            width, height = image.size
            raise BadImage(f"image is {width} x {height} pixels; this model needs at least {LEAST_SIDE} on each side")
        if edge := self.chat.shortest_edge:
            check_megapixels(*resized_size(*image.size, edge), max_megapixels, "resized image")

    def encode_answer(self, conversation: Conversation, answer: str) -> list[int]:
        return self.chat.answer_ids(conversation, answer)

    def text(self, token_ids: list[int]) -> str:
        return self.chat.text(token_ids)

    @torch.inference_mode()
    def run_prompt(self, prompt: ProcessedPrompt) -> PromptEnd:
        end, _ = self._run_prompt(prompt)
        return end

    def _run_prompt(self, prompt: ProcessedPrompt) -> tuple[PromptEnd, Tensor]:
        """The end of a prompt, and the model's logits there [V]."""
        self._last.clear()
        cache = DynamicCache(config=self._model.config.get_text_config(decoder=True))
        given = self._model.prepare_inputs_for_generation(
            **self._inputs(prompt), past_key_values=cache, is_first_iteration=True, use_cache=True
        )
        # Without it, logits of all P tokens would be there at once.
        out = self._model(**given | {"logits_to_keep": 1})
        if "hidden" not in self._last:
            raise DoesNotFit("its text decoder is not called as a module")
        positions = self._last.get("positions")
        # The largest of all axes: an image takes fewer positions than tokens where they have height and width.
        following = prompt.length if positions is None else int(positions.max()) + 1
        layers = [layer if is_recurrent(layer) else PassingLayer() for layer in cache.layers]
        return PromptEnd(self._last["hidden"], following, layers), out.logits[0, -1]

    def run_answers(self, ids_KT: Tensor, positions_KT: Tensor, cache: Cache) -> Tensor:
        # Ids, not embeddings: some decoders look up more than one embedding of a token.
        return self.decoder(
            input_ids=ids_KT, position_ids=positions_KT, past_key_values=cache, use_cache=True
        ).last_hidden_state

    @torch.inference_mode()
    def plain_logits(self, prompt: ProcessedPrompt, ids: list[int]) -> Tensor:
        whole = {name: value for name, value in self._inputs(prompt).items() if name != "input_ids"}
        # What stands beside each token, such as masks and types, grows as `generate` has it grow, token by token.
        for _ in ids:
            whole = self._model._update_model_kwargs_for_generation({}, whole, is_encoder_decoder=False)
        types = whole.get("token_type_ids")
        if types is not None:
            whole["token_type_ids"] = types[:, : prompt.length + len(ids)]
        asked = self._inputs(prompt)["input_ids"]
        whole["input_ids"] = torch.cat([asked, torch.tensor([ids], device=self.device)], 1)
        given = self._model.prepare_inputs_for_generation(**whole, is_first_iteration=True, use_cache=False)
        return self._model(**given).logits[0, prompt.length - 1 : -1].float()

    def plain_steps(self, prompt: ProcessedPrompt, num_rows: int) -> PlainSteps:
        return _OwnDecoding(self._model, self._inputs(prompt), num_rows)

    def _inputs(self, prompt: ProcessedPrompt) -> dict[str, Tensor]:
        """On the device; pixels in the model's dtype, whatever the processor made of them."""
        return {
            name: sent(value, self.device).to(self.dtype) if value.is_floating_point() else sent(value, self.device)
            for name, value in prompt.inputs.items()
        }

    def _note_positions(self, module: nn.Module, args: tuple, options: dict) -> None:
        if options.get("position_ids") is not None:
            self._last["positions"] = options["position_ids"]

    def _note_hidden(self, module: nn.Module, args: tuple, out: object) -> None:
        self._last["hidden"] = out.last_hidden_state[0, -1]

    @torch.inference_mode()
    def _find_layers(self) -> None:
        """Run a small prompt: the modules that attend, what they keep, and what the model does with its logits."""
        picture = Image.linear_gradient("L").resize(PROBE_SIZE).convert("RGB")
        prompt = ProcessedPrompt(self.chat.inputs(PROBE, [picture]))
        finding = Finding(prompt.length, set(self.decoder.modules()))
        with attending(finding, finding.layers):
            end, logits = self._run_prompt(prompt)
        if not finding.noted:
            raise DoesNotFit("no layer of its decoder attends through transformers' attention interface")
        self.attention_layers, self.cache_layers = dict(finding.layers), end.cache_layers
        self.layers = tuple(layer_kinds(finding.noted))
        text = self._model.config.get_text_config()
        self.head = fitted_head(self.head, end.hidden_D, logits, text)


class _OwnDecoding:
    """Rows of answers as the model's own `generate` computes them: the prompt is run once, its cache then copied.

    `generate` itself expands the inputs of a prompt, where several crops of an image change places.
    """

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Tensor], num_rows: int) -> None:
        self._model, self._num_rows = model, num_rows
        self._ids = inputs.pop("input_ids")
        self._cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self._options = inputs | {"past_key_values": self._cache, "use_cache": True, "logits_to_keep": 1}
        # As `generate` begins: models with several axes of positions go on counting from these.
        if "position_ids" in inspect.signature(model.forward).parameters:
            self._options["position_ids"] = model._prepare_position_ids_for_generation(self._ids, self._options)

    @torch.inference_mode()
    def first(self) -> Tensor:
        logits = self._step(is_first_iteration=True)
        if self._num_rows > 1:
            self._cache.layers = [
                mapped(layer, self._repeated) if is_recurrent(layer) else _copied(layer, self._num_rows)
                for layer in self._cache.layers
            ]
            for name, value in self._options.items():
                if isinstance(value, Tensor) and (axis := self._axis_of_rows(value)) is not None:
                    self._options[name] = value.repeat_interleave(self._num_rows, axis)
            self._ids = self._repeated(self._ids)
        return self._repeated(logits)

    @torch.inference_mode()
    def next(self, tokens_K: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids, tokens_K[:, None]], 1)
        return self._step(next_sequence_length=1)

    def _repeated(self, rows: Tensor) -> Tensor:
        return rows.repeat_interleave(self._num_rows, 0)

    def _axis_of_rows(self, value: Tensor) -> int | None:
        """The axis that counts rows, of what stands beside each token: it comes before that of the tokens.

        Pixels have none: they are not read again.
        """
        tokens = self._ids.shape[1]
        for axis in range(value.ndim - 1):
            if (
                value.shape[axis] == 1
                and value.shape[axis + 1] in (tokens, tokens + 1)
                and not value.is_floating_point()
            ):
                return axis
        return None

    def _step(self, **how: object) -> Tensor:
        given = self._model.prepare_inputs_for_generation(self._ids, **how, **self._options)
        out = self._model(**given, return_dict=True)
        self._options = self._model._update_model_kwargs_for_generation(out, self._options, is_encoder_decoder=False)
        return out.logits[:, -1].float()


def _copied(layer: object, num_rows: int) -> object:
    """A layer of a cache for so many equal rows."""
    if getattr(layer, "keys", None) is not None:
        layer.batch_repeat_interleave(num_rows)
    return layer


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """The text decoder without a head."""
    decoder = model.get_decoder()
    # Llama 4 gives the decoder with its head.
    if hasattr(decoder, "lm_head"):
        decoder = getattr(decoder, "model", decoder)
    if decoder is None or decoder is model or hasattr(decoder, "lm_head"):
        raise DoesNotFit("it does not say which part of it is the text decoder")
    return decoder


def find_vision(model: PreTrainedModel) -> nn.Module | None:
    """The vision tower: the outermost module with the vision configuration."""
    config = getattr(model.config, "vision_config", None)
    return next((module for module in model.modules() if getattr(module, "config", model) is config), None)


def attend_by_hook(model: PreTrainedModel, decoder: nn.Module) -> None:
    """Have the decoder's layers, and nothing else, attend by attention.NAME."""
    configs = {id(module.config) for module in decoder.modules() if hasattr(module, "config")}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and id(config) in configs:
            config._attn_implementation = NAME


def _output_weights(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise DoesNotFit("its output layer is not a linear one")
    return layer.weight, layer.bias


def fitted_head(head: Head, hidden_D: Tensor, logits_V: Tensor, config: object) -> Head:
    """The head that gives the model's own logits: some configurations name a scale that their model does not apply.

    Raises DoesNotFit where none does.
    """
    scales = [1.0] + [
        1 / value if name == "logits_scaling" else value
        for name in ("logit_scale", "logits_scaling", "output_multiplier")
        if (value := getattr(config, name, None)) is not None
    ]
    caps = [None, *filter(None, [getattr(config, "final_logit_softcapping", None)])]
    tolerance = 1e-4 if head.weight.dtype == torch.float32 else 3e-2
    for scale, cap in itertools.product(scales, caps):
        found = Head(head.weight, head.bias, scale, cap)
        if torch.allclose(found.logits(hidden_D[None])[0], logits_V.float(), rtol=tolerance, atol=tolerance):
            return found
    raise DoesNotFit("its logits are not those of its output layer, nor a scale or a cap of config.json away from them")


def layer_kinds(noted: Mapping[int, Noted]) -> list[LayerKind]:
    """What each layer keeps, by what a prompt left in it; one that uses another's keys was handed the same tensors."""
    kinds, places = [], {}
    for number in range(len(noted)):
        keys, values, cross, _ = noted[number]
        # Not data_ptr: tensors on the meta device have none.
        place = tuple((part.untyped_storage()._cdata, part.storage_offset()) for part in (keys, values))
        kinds.append(LayerKind(keys.shape[0], keys.shape[-1], values.shape[-1], cross, places.get(place)))
        places.setdefault(place, number)
    return kinds
