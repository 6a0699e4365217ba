"""Any AutoModelForImageTextToText of transformers: its own forward for a prompt, its text decoder for the answers.

Vision tower, splicing, positions and masks of a prompt are the model's. What its decoder's layers are is found by
running a small prompt once when it is loaded. A model that cannot share its prompts says so in `why_plain`.

Shapes: P prompt tokens, K rows, T tokens, V vocabulary, D width.
"""

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_utils import PreTrainedModel

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.errors import BadRow, UserError
from data_engine.models.answer_cache import PassingLayer, is_recurrent
from data_engine.models.attention import DoesNotFit, Finding, Noting, attending
from data_engine.models.auto.chat import Chat
from data_engine.models.auto.limits import fast_positions
from data_engine.models.auto.loading import check_weights, load_weights, refusing_misfits
from data_engine.models.auto.own_decoding import OwnDecoding
from data_engine.models.auto.parts import (
    attend_by_hook,
    find_decoder,
    find_vision,
    fitted_head,
    layer_kinds,
    output_weights,
)
from data_engine.models.auto.sizes import cache_sizes, describe
from data_engine.models.auto.splitting import check_split, load_split, whole_modules
from data_engine.models.base import CacheSizes, Description, LayerKind, PlainSteps, PromptEnd, Split, TextSide, sent
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


def probe_picture() -> Image.Image:
    return Image.linear_gradient("L").resize(PROBE_SIZE).convert("RGB")


class Auto:
    """One checkpoint of transformers; the protocol is models.base.VisionLanguageModel."""

    family = "auto"
    is_split = False
    takes_chat_settings, has_plain_path = True, True

    def __init__(self, model: PreTrainedModel, chat: Chat) -> None:
        self._model, self.chat = model.eval(), chat
        self.device, self.dtype = model.device, model.dtype
        self.eos_token_ids, self.banned_token_ids = chat.eos_token_ids, chat.banned_token_ids
        self.markers, self.vocabulary = chat.markers, chat.vocabulary
        self.vision = find_vision(model)
        self.num_ids = model.get_input_embeddings().num_embeddings
        text = model.config.get_text_config(decoder=True)
        self.max_plain_positions, self._fast_positions = text.max_position_embeddings, fast_positions(text)
        self.attention_layers: Mapping[nn.Module, int] = {}
        self.layers: Sequence[LayerKind] = ()
        self.cache_layers: Sequence[object] = ()
        self.why_plain: str | None = None
        self.is_settled = False
        # Tokenizers keep state while they encode, and prompts are made by several threads.
        self._one_at_a_time = threading.Lock()
        self._last: dict[str, Tensor] = {}
        try:
            self.decoder = find_decoder(model)
            self.head = Head(*output_weights(model))
            # Mllama embeds its image token, and has no logit for it.
            self.num_ids = min(self.num_ids, len(self.head.weight))
            attend_by_hook(model, self.decoder)
            self.decoder.register_forward_pre_hook(self._note_positions, with_kwargs=True)
            self.decoder.register_forward_hook(self._note_hidden)
            if self.vision is not None:
                self.vision.register_forward_pre_hook(self._note_encoded, with_kwargs=True)
        except DoesNotFit as reason:
            self.why_plain = str(reason)

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        split: Split | None = None,
        chat: ChatSettings = NO_CHAT_SETTINGS,
    ) -> "Auto":
        """Read a checkpoint folder; raises ModelError naming what is missing, unexpected or contradictory."""
        if split is not None:
            check_split(folder)
            return cls(load_split(folder, device, dtype, split), Chat.load(folder, chat))
        return cls(load_weights(folder, device, dtype), Chat.load(folder, chat))

    def find_layers(self) -> None:
        """Run a small prompt to see what the layers are. Raises ModelError where the model cannot."""
        if self.why_plain is None:
            try:
                with refusing_misfits(self.chat.folder):
                    self._find_layers()
            except DoesNotFit as reason:
                self.why_plain = str(reason)

    def whole_modules(self) -> list[tuple[nn.Module, str]]:
        parts = [self.decoder, *filter(None, [self.vision])]
        return [place for part in parts for place in whole_modules(part)]

    @torch.inference_mode()
    def idle_decode(self) -> None:
        one = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.decoder(input_ids=one, position_ids=one, use_cache=False)

    @torch.inference_mode()
    def idle_encode(self) -> None:
        # The last picture again; one that was run when the layers were found, if no other.
        args, options = self._last_encoded
        self.vision(*args, **options)

    @classmethod
    def check(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> None:
        """Raise ModelError for what `load` would refuse, as can be seen without reading the weights."""
        Chat.load(folder, chat)
        check_weights(folder)

    @classmethod
    def text_side(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> TextSide:
        loaded = Chat.load(folder, chat)
        return TextSide(loaded.vocabulary, loaded.markers, loaded.image_processor_name)

    @staticmethod
    def cache_sizes(folder: Path) -> CacheSizes:
        return cache_sizes(folder)

    @classmethod
    def describe(cls, folder: Path) -> Description:
        return describe(folder)

    @classmethod
    def check_split(cls, folder: Path) -> None:
        """Raise ModelError where the model cannot be split over ranks."""
        check_split(folder)

    @staticmethod
    def folders(folder: Path) -> list[Path]:
        """Its own alone."""
        return [folder]

    @property
    def max_positions(self) -> int:
        return self.max_plain_positions if self.why_plain else min(self.max_plain_positions, self._fast_positions)

    def prompt(
        self, conversation: Conversation, images: Sequence[Image.Image], crop: bool, max_megapixels: float
    ) -> ProcessedPrompt:
        for image in images:
            self._check_size(image, max_megapixels)
        if not images and any(kind.cross for kind in self.layers):
            raise BadRow("this model looks at its image in layers of their own, and the row has none")
        with self._one_at_a_time:
            return ProcessedPrompt(self.chat.inputs(conversation, images))

    def _check_size(self, image: Image.Image, max_megapixels: float) -> None:
        check_megapixels(*image.size, max_megapixels, "source image")
        if min(image.size) < LEAST_SIDE:
            width, height = image.size
            raise BadImage(f"image is {width} x {height} pixels; this model needs at least {LEAST_SIDE} on each side")
        if edge := self.chat.shortest_edge:
            check_megapixels(*resized_size(*image.size, edge), max_megapixels, "resized image")

    def shared_prompt(
        self, conversations: Sequence[Conversation], images: Sequence[Image.Image], crop: bool, max_megapixels: float
    ) -> tuple[ProcessedPrompt, list[list[int]]]:
        if self._reads_ahead:
            raise UserError("this model's prompts are read in both directions, so none is the beginning of another")
        for image in images:
            self._check_size(image, max_megapixels)
        with self._one_at_a_time:
            inputs, tails = self.chat.shared(conversations, images)
        return ProcessedPrompt(inputs), tails

    @functools.cached_property
    def _reads_ahead(self) -> bool:
        """Whether a longer text behind a prompt's image changes the keys of what stands before it."""
        short, long = (
            self._probe_keys(Conversation.of(text))
            for text in (PROBE.question, f"{PROBE.question} Which of them is it?")
        )
        # By the tokens that both begin with, but the last ones, in which the texts differ.
        common = min(short.shape[1], long.shape[1]) // 2
        return not torch.allclose(short[:, :common], long[:, :common], rtol=1e-2, atol=1e-2)

    def _probe_keys(self, conversation: Conversation) -> Tensor:
        """Keys [G, P, D] of the last layer that looks at tokens, for a small picture."""
        with self._one_at_a_time:
            prompt = ProcessedPrompt(self.chat.inputs(conversation, [probe_picture()]))
        noting = Noting(prompt.length)
        with attending(noting, self.attention_layers):
            self.run_prompt(prompt)
        return [one.keys for _, one in sorted(noting.noted.items()) if not one.cross][-1].float()

    def encode_answer(self, conversation: Conversation, answer: str) -> list[int]:
        with self._one_at_a_time:
            return self.chat.answer_ids(conversation, answer)

    def text(self, token_ids: list[int]) -> str:
        with self._one_at_a_time:
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
        return OwnDecoding(self._model, self._inputs(prompt), num_rows)

    def _inputs(self, prompt: ProcessedPrompt) -> dict[str, Tensor]:
        """On the device; pixels in the model's dtype, whatever the processor made of them."""
        return {
            name: sent(value, self.device).to(self.dtype) if value.is_floating_point() else sent(value, self.device)
            for name, value in prompt.inputs.items()
        }

    def _note_positions(self, module: nn.Module, args: tuple, options: dict) -> None:
        if options.get("position_ids") is not None:
            self._last["positions"] = options["position_ids"]

    def _note_encoded(self, module: nn.Module, args: tuple, options: dict) -> None:
        if self.is_split:
            self._last_encoded = args, options

    def _note_hidden(self, module: nn.Module, args: tuple, out: object) -> None:
        self._last["hidden"] = out.last_hidden_state[0, -1]

    @torch.inference_mode()
    def _find_layers(self) -> None:
        """Run a small prompt: the modules that attend, what they keep, and what the model does with its logits."""
        prompt = ProcessedPrompt(self.chat.inputs(PROBE, [probe_picture()]))
        finding = Finding(prompt.length, set(self.decoder.modules()))
        with attending(finding, finding.layers):
            end, logits = self._run_prompt(prompt)
        if not finding.noted:
            raise DoesNotFit("no layer of its decoder attends through transformers' attention interface")
        self.attention_layers, self.cache_layers = dict(finding.layers), end.cache_layers
        self.layers = tuple(layer_kinds(finding.noted))
        text = self._model.config.get_text_config()
        self.head = fitted_head(self.head, end.hidden_D, logits, text)
