"""Any AutoModelForImageTextToText of transformers: its own forward for a prompt, its text decoder for the answers.

Vision tower, splicing, positions and masks of a prompt are the model's. What its decoder's layers are is found by
running a small prompt once when it is loaded. A model that cannot share its prompts says so in `why_plain`.

Shapes: P prompt tokens, K rows, T tokens, V vocabulary, D width.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.errors import BadRow, LostRankError, UserError
from data_engine.models import image_groups
from data_engine.models.auto import limits, probing
from data_engine.models.auto.forward import packed_prompts, processed
from data_engine.models.auto.forward.own_decoding import OwnDecoding, whole_rows
from data_engine.models.auto.forward.own_forward import OwnForward
from data_engine.models.auto.forward.packed_tower import PackedTower, tower_calls
from data_engine.models.auto.forward.processed import ProcessedPrompt
from data_engine.models.auto.parts import Attention, find_decoder, find_vision, output_weights, prompt_cache
from data_engine.models.auto.sizes import cache_sizes, describe
from data_engine.models.auto.text.chat import Chat
from data_engine.models.auto.text.prompts import AutoPrompts
from data_engine.models.auto.weights.loading import check_weights, load_weights, refusing_misfits
from data_engine.models.auto.weights.splitting import check_split, load_split, whole_modules
from data_engine.models.auto.weights.value_head import ValueHead
from data_engine.models.base import CacheSizes, Description, PlainSteps, PromptEnd, Split, TextSide
from data_engine.models.call_errors import why_not_called
from data_engine.models.device import sent
from data_engine.models.layers import rotary
from data_engine.models.layers.answer_cache import CACHE, PassingLayer, is_recurrent, passing, require_shareable
from data_engine.models.layers.attention import DoesNotFit
from data_engine.models.layers.head import Head
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.prompt_maker import PromptMaker
from data_engine.questions.conversation import Conversation
from data_engine.questions.thoughts import ReadAnswer


class Auto:
    """One checkpoint of transformers; the protocol is models.base.VisionLanguageModel."""

    family = "auto"
    is_split = False
    takes_chat_settings, has_plain_path, samples_other_pixels = True, True, False

    def __init__(self, model: PreTrainedModel, chat: Chat) -> None:
        self._model, self.chat = model.eval(), chat
        self.device, self.dtype = model.device, model.dtype
        self.eos_token_ids, self.banned_token_ids = chat.eos_token_ids, chat.banned_token_ids
        self.markers, self.vocabulary = chat.markers, chat.vocabulary
        self.vision = find_vision(model)
        self.num_ids = model.get_input_embeddings().num_embeddings
        self.text_config = text = model.config.get_text_config(decoder=True)
        self.answers_in_rows, self._needs_pixels = limits.counts_in_pass(text), limits.needs_pixels(type(model))
        self.max_plain_positions, self._fast_positions = text.max_position_embeddings, limits.fast_positions(text)
        self.attention_layers: Mapping[nn.Module, int] = {}
        self.layers: Sequence[LayerKind] = ()
        self.cache_layers: Sequence[object] = ()
        self.decoder: nn.Module | None = None
        self._own_attention: Callable[[], AbstractContextManager] = contextlib.nullcontext
        self.value_head: ValueHead | None = None
        self.why_plain: str | None = None
        self.is_settled = self.encodes_together = False
        # Tokenizers keep state while they encode, and prompts are made by several threads.
        self._one_at_a_time = threading.Lock()
        try:
            self.decoder = find_decoder(model)
            self.head = Head(*output_weights(model))
            # Mllama embeds its image token, and has no logit for it.
            self.num_ids = min(self.num_ids, len(self.head.weight))
            self._tables = rotary.tables_by_position(self.decoder)
            self._own_attention = Attention(self.decoder).own
            self.own_forward = OwnForward(model, self.decoder, self.vision)
            if self.vision is not None:
                self.vision.register_forward_pre_hook(self._note_encoded, with_kwargs=True)
        except DoesNotFit as problem:
            self.why_plain = str(problem)

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        split: Split | None = None,
        chat: ChatSettings = NO_CHAT_SETTINGS,
        headed: bool = False,
    ) -> "Auto":
        """Read a checkpoint folder, that of a reward model if it is to be `headed`.

        Raises ModelError naming what is missing, unexpected or contradictory.
        """
        # First, since it takes no memory.
        text_side = Chat.load(folder, chat)
        if split is not None:
            check_split(folder)
            found = cls(load_split(folder, device, dtype, split, headed), text_side)
        else:
            found = cls(load_weights(folder, device, dtype, headed), text_side)
        if headed:
            found.value_head = ValueHead.load(folder, found.text_config.hidden_size, device)
        return found

    def find_layers(self) -> None:
        """Run a small prompt to see what the layers are. Raises ModelError where the model cannot."""
        if self.why_plain is not None:
            return
        try:
            with refusing_misfits(self.chat.folder), tower_calls(self.vision) as calls:
                shown = probing.run_prompt(self)
            found = probing.layers_of(self, shown)
        except DoesNotFit as problem:
            self.why_plain = str(problem)
        except (torch.OutOfMemoryError, UserError, LostRankError):
            raise
        # Whatever a model raises when its decoder is called in a way that it does not know.
        except Exception as error:
            self.why_plain = f"its decoder cannot be called on its own ({why_not_called(error)})"
        else:
            self.attention_layers, self.layers, self.cache_layers, self.head = found
            if self.head.never is not None:
                self.banned_token_ids = tuple(dict.fromkeys([*self.banned_token_ids, *self.head.never.tolist()]))
            self.answers_in_rows |= any(map(is_recurrent, self.cache_layers))
            if calls:
                PackedTower.of(self.vision, calls[0])
            self.encodes_together = image_groups.images_a_call(self) > 1 and probing.encodes_together(self)

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
    def check(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS, headed: bool = False) -> None:
        """Raise ModelError for what `load` would refuse, as can be seen without reading the weights."""
        Chat.load(folder, chat)
        check_weights(folder, headed)

    @classmethod
    def text_side(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> TextSide:
        loaded = Chat.load(folder, chat)
        return TextSide(
            loaded.vocabulary,
            loaded.markers,
            image_processor=loaded.image_processor_name,
            unused_kwargs=loaded.unused_kwargs,
            control_tokens=loaded.markers,
            text=loaded.text,
            read_answer=loaded.read_answer,
            thought_marks=loaded.thought_marks,
            word_ids=loaded.word_ids,
        )

    @classmethod
    def prompt_maker(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> PromptMaker:
        return AutoPrompts(folder, chat)

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
        self._check_images(images, max_megapixels)
        with self._one_at_a_time:
            return ProcessedPrompt(self.chat.inputs(conversation, images))

    def prompts(
        self, conversations: Sequence[Conversation], images: Sequence[Image.Image], crop: bool, max_megapixels: float
    ) -> list[ProcessedPrompt]:
        self._check_images(images, max_megapixels)
        with self._one_at_a_time:
            return list(map(ProcessedPrompt, self.chat.inputs_of_each(conversations, images)))

    def prompt_without_images(self, conversation: Conversation) -> ProcessedPrompt:
        if self._needs_pixels:
            raise BadRow(limits.NEEDS_PIXELS)
        if not self.why_plain and any(kind.cross for kind in self.layers):
            raise BadRow("this model looks at its image in layers of their own, and cannot run without one")
        with self._one_at_a_time:
            return ProcessedPrompt(self.chat.inputs(conversation.without_images(), []))

    def _check_images(self, images: Sequence[Image.Image], max_megapixels: float) -> None:
        """Raise BadImage for one that would get too large, and BadRow for none where a layer looks at images alone."""
        for image in images:
            limits.check_size(image, self.chat.shortest_edge, max_megapixels)
        if not images and self._needs_pixels:
            raise BadRow(limits.NEEDS_PIXELS)
        # Prompts with and without it cannot go through the layers together.
        if not images and not self.why_plain and any(kind.cross for kind in self.layers):
            raise BadRow(limits.NEEDS_IMAGE)

    def shared_prompt(
        self, conversations: Sequence[Conversation], images: Sequence[Image.Image], max_megapixels: float
    ) -> tuple[ProcessedPrompt, list[list[int]]]:
        if self.reads_ahead:
            raise UserError("this model's prompts are read in both directions, so none is the beginning of another")
        self._check_images(images, max_megapixels)
        with self._one_at_a_time:
            inputs, tails = self.chat.shared(conversations, images)
        return ProcessedPrompt(inputs), tails

    @functools.cached_property
    def reads_ahead(self) -> bool:
        return probing.reads_ahead(self)

    def encode_answer(self, conversation: Conversation, answer: str) -> list[int]:
        with self._one_at_a_time:
            return self.chat.answer_ids(conversation, answer)

    def word_ids(self, words: Sequence[str]) -> list[int]:
        with self._one_at_a_time:
            return [number for number in self.chat.word_ids(words) if number < self.num_ids]

    def text(self, token_ids: list[int]) -> str:
        with self._one_at_a_time:
            return self.chat.text(token_ids)

    def read_answer(self, conversation: Conversation, token_ids: list[int]) -> ReadAnswer:
        with self._one_at_a_time:
            return self.chat.read_answer(conversation, token_ids)

    def encoded(self, prompts: Sequence[ProcessedPrompt]) -> Iterator[ProcessedPrompt]:
        return self.encoded_together(prompts) if self.encodes_together else iter(prompts)

    encoded_together, run_prompts = processed.encoded_together, packed_prompts.run_prompts

    def image_features(self, pixels: Tensor) -> Tensor:
        """[B, N, D] of images or tiles [B, C, H, W], as the model's own forward makes them."""
        pixels = sent(pixels, self.device).to(self.dtype)
        return self._model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output

    @torch.inference_mode()
    def run_prompt(self, prompt: ProcessedPrompt) -> PromptEnd:
        end, _ = self.run_with_logits(prompt)
        return end

    def run_with_logits(self, prompt: ProcessedPrompt) -> tuple[PromptEnd, Tensor]:
        """The end of a prompt, and the model's logits there [V]."""
        run = functools.partial(self._run_with_logits, prompt)
        # Of a split model, other ranks wait in a call that failed; but while it is loaded, all run the same prompt.
        return run() if self.is_split and self.layers else self.own_forward.mirrored_or_plain(run)

    def _run_with_logits(self, prompt: ProcessedPrompt) -> tuple[PromptEnd, Tensor]:
        cache = prompt_cache(self.text_config, self.device)
        out = self.run_forward(prompt, cache)
        require_shareable(cache.layers)
        layers = [layer if is_recurrent(layer) else PassingLayer() for layer in cache.layers]
        own = self.own_forward
        return PromptEnd(own.hidden_D, own.next_position(prompt), layers), out.logits[0, -1]

    def run_forward(self, prompt: ProcessedPrompt, cache: Cache) -> ModelOutput:
        """The model's own forward of a prompt."""
        # Ranks that call a split model together tell each other of it by tensors of their own.
        return self.own_forward.run(prompt, self._inputs(prompt), cache, sends=not self.is_split)

    @functools.cached_property
    def packs_prompts(self) -> bool:
        return self.why_plain is None and packed_prompts.may_pack(self) and probing.packs(self)

    def run_decoder(self, given: Mapping[str, Tensor]) -> Tensor:
        """Last hidden states [M, D] of a row of prompts, of which none is kept."""
        cache = passing(len(self.cache_layers))
        return self.decoder(**given, **{CACHE: cache}, use_cache=True).last_hidden_state[0]

    @torch.inference_mode()
    def plain_end(self, prompt: ProcessedPrompt) -> tuple[Tensor, Tensor]:
        with self._own_attention():
            given = self._model.prepare_inputs_for_generation(
                **self._inputs(prompt), is_first_iteration=True, use_cache=False
            )
            out = self._model(**given | {"logits_to_keep": 1, "output_hidden_states": True})
        return out.hidden_states[-1][0, -1], out.logits[0, -1].float()

    def run_answers(self, ids_KT: Tensor, positions_KT: Tensor, cache: Cache) -> Tensor:
        # Ids, not embeddings: some decoders look up more than one embedding of a token.
        given = {"input_ids": ids_KT, "position_ids": positions_KT, CACHE: cache, "use_cache": True}
        with rotary.kept(self._tables):
            return self.decoder(**given).last_hidden_state

    @torch.inference_mode()
    def plain_logits(self, prompt: ProcessedPrompt, ids: list[int]) -> Tensor:
        answer = torch.tensor([ids], device=self.device)
        # Those of a prompt may take as much memory as the model. Named one by one: for a number, Gemma 4 leaves tokens
        # out of its last layers, by a mask that it reads from the name of the attention.
        predicting = torch.arange(prompt.length - 1, prompt.length - 1 + len(ids), device=self.device)
        with self._own_attention():
            given = whole_rows(self._model, self._inputs(prompt), answer)
            logits = self._model(**given | {"logits_to_keep": predicting}).logits[0]
        # Some models make those of all tokens, whatever they are asked for.
        return (logits if len(logits) == len(ids) else logits[prompt.length - 1 : -1]).float()

    def plain_steps(self, prompt: ProcessedPrompt, num_rows: int) -> PlainSteps:
        return OwnDecoding(self._model, self._inputs(prompt), num_rows, self._own_attention)

    def _inputs(self, prompt: ProcessedPrompt) -> dict[str, Tensor]:
        return processed.on_device(prompt, self.device, self.dtype)

    def _note_encoded(self, module: nn.Module, args: tuple, options: dict) -> None:
        if self.is_split:
            self._last_encoded = args, options
