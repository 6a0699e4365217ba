"""Conversations and pictures to a model's inputs, and answers to ids, by a checkpoint's own processor and template.

Shapes: P tokens of a prompt with its pictures expanded.
"""

import copy
import inspect
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, ProcessorMixin

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.errors import BadRow, UserError
from data_engine.models.auto.config import load_config
from data_engine.models.auto.limits import TOKEN_TYPES, known_ids, takes_token_types
from data_engine.models.auto.text.answer_ids import behind_answer, encode, first_special, tail, with_thought
from data_engine.models.auto.text.chat_template import ANSWER, WORD, ChatTemplate, neutral
from data_engine.models.auto.text.control_tokens import ControlTokens, end_ids, fingerprint, media_ids
from data_engine.models.auto.text.processor import Once, explained, in_one_list, load_processor, text_alone
from data_engine.models.auto.text.thought_marks import marks_of, require_ends
from data_engine.models.checkpoints.json_files import ModelError, read_json, reason
from data_engine.models.words import ids_of_words
from data_engine.plural import plural
from data_engine.questions import thoughts
from data_engine.questions.conversation import Conversation, Message
from data_engine.store.absent import is_file

_PICTURE = Image.new("RGB", (120, 90), (90, 120, 150))
# What messages are called in the reason why a row is left out.
_NAMES = {"user": "question", "system": "system text", "assistant": "earlier answer"}


class Chat:
    """The text side of one checkpoint. Not for several threads at once: tokenizers keep state while they encode."""

    def __init__(self, folder: Path, config: PreTrainedConfig, processor: ProcessorMixin,
                 settings: ChatSettings) -> None:  # fmt: skip
        """Use `load`."""
        self.folder, self._config = folder, config
        self._processor, self._tokenizer = processor, processor.tokenizer
        self._template = ChatTemplate(processor, settings, folder)
        self._controls = ControlTokens(processor, self._template.source)
        self._keeps_plain = "sanitize_control_tokens" in inspect.signature(processor.apply_chat_template).parameters
        self._starts_answers, self._most_images, self._known_ids = True, sys.maxsize, sys.maxsize
        self.unused_kwargs = self._template.unused_kwargs
        """names of --chat_template_kwargs that this template does not read"""
        self.markers: tuple[str, ...] = self._controls.texts
        """texts of the prompt format: an answer that contains one never ranks"""
        self.vocabulary = fingerprint(self._tokenizer)
        """models of equal fingerprints can exchange token ids"""
        self.image_processor_name = type(processor.image_processor).__name__
        """Pillow's and torchvision's give other pixels"""
        size = getattr(processor.image_processor, "size", None) or {}
        self.shortest_edge: int | None = None if size.get("longest_edge") else size.get("shortest_edge")
        """pixels of an image's short side after resizing, where its long side then is of any length"""
        self.eos_token_ids = self._ends()
        opening = self._template.opening(Conversation.of(WORD))
        marks = marks_of(self._template.source, self._tokenizer)
        self.thought_marks = require_ends(opening, marks, self._tokenizer, self._template.name)
        """what stands around thoughts, the model's own marks first"""
        self._media = media_ids(processor, config)
        size = config.get_text_config().vocab_size
        sampled = (number for number in self._media if number < size)
        self.banned_token_ids = tuple(number for number in sampled if number not in self.eos_token_ids)
        """never sampled: placeholders of pictures, films and sounds, and what stands around them"""
        # By the conversation without its texts, of which a run has a few kinds.
        self._tail = lru_cache(1024)(partial(tail, self._template, self._controls, self._tokenizer, self.eos_token_ids))
        self._neutral_counts = lru_cache(1024)(self._counts_of)
        self._placed = lru_cache(1024)(self._placed_in)
        self._opens_thought = lru_cache(1024)(self._opens_thought_behind)
        self._image_tokens = self._counts_of(Conversation.of(WORD)) - self._counts_of(Conversation.of(WORD, 0))

    @classmethod
    def load(cls, folder: Path, settings: ChatSettings = NO_CHAT_SETTINGS) -> "Chat":
        """Read the processor of a checkpoint, and try it on a picture.

        Raises ModelError naming what is wrong with the folder or missing here, UserError for the settings.
        """
        config = load_config(folder)
        chat = cls(folder, config, load_processor(folder, config), settings)
        chat._known_ids = known_ids(chat._try_picture(), config, chat._tokenizer, folder)
        chat._starts_answers = chat._try_start()
        return chat

    def inputs(self, conversation: Conversation, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """The processor's tensors on CPU for a batch of one, "input_ids" [1, P] among them.

        Raises BadRow where the template or the processor refuses the row, or a text would forge the prompt's format.
        """
        return self._inputs(self._processor, conversation, images)

    def inputs_of_each(self, conversations: Sequence[Conversation], images: Sequence[Image.Image]) -> list[dict]:
        """The same of several conversations about these images, which are processed once. Raises as `inputs` does."""
        processor = copy.copy(self._processor)
        processor.image_processor = Once(processor.image_processor)
        return [self._inputs(processor, conversation, images) for conversation in conversations]

    def written_ids(self, conversation: Conversation, images: Sequence[Image.Image]) -> list[int]:
        """The ids of what the template writes, where what stands for an image is not yet expanded to its tokens.

        Raises BadRow as `inputs` does.
        """
        return self._inputs(text_alone(self._processor), conversation, images)["input_ids"][0].tolist()

    def answer_ids(self, conversation: Conversation, answer: str) -> list[int]:
        """An answer's ids behind that conversation as in training: what the template puts before it, one end token.

        Control tokens in the text stay text. A thought in it, up to its mark, is written as the model would have
        written it behind this prompt. Raises BadRow where the tokenizer cannot keep control tokens as text.
        """
        around = replace(self._tail(_shape(conversation)), marks=self.thought_marks)
        around, answer = with_thought(around, answer, self._opens_thought(conversation))
        return encode(self._tokenizer, self._controls, around, answer)

    def read_answer(self, conversation: Conversation, token_ids: Sequence[int]) -> thoughts.ReadAnswer:
        """The final answer of an answer's ids behind that conversation, and its thought."""
        return thoughts.read(token_ids, self._decode, self.text, self.thought_marks, self._opens_thought(conversation))

    def word_ids(self, words: Sequence[str]) -> list[int]:
        """See VisionLanguageModel.word_ids."""
        return ids_of_words(lambda text: self._tokenizer.encode(text, add_special_tokens=False), self.text, words)

    def shared(
        self, conversations: Sequence[Conversation], images: Sequence[Image.Image]
    ) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Inputs of the longest common beginning, pictures included, and the ids behind it, at least one, of each.

        Raises UserError where the pictures, or what stands before the last of them, differ; BadRow as `inputs` does.
        """
        if len({_head(conversation) for conversation in conversations}) != 1:
            raise UserError("conversations can share a beginning only where all up to the last image is equal")
        every = self.inputs_of_each(conversations, images)
        ids = [given["input_ids"][0].tolist() for given in every]
        limit = min(map(len, ids)) - 1
        length = next((place for place in range(limit) if len({row[place] for row in ids}) > 1), limit)
        if not set(self._media).isdisjoint(ids[0][length:]):
            raise UserError("conversations differ before the end of the last image's tokens")
        pixels = set(self._processor.image_processor.model_input_names)
        whole = len(ids[0])
        given = {name: value if name in pixels else _cut(value, whole, length) for name, value in every[0].items()}
        return given, [row[length:] for row in ids]

    def text(self, token_ids: Sequence[int]) -> str:
        """Decoded, special tokens skipped, stripped."""
        return self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).strip()

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _opens_thought_behind(self, conversation: Conversation) -> bool:
        told = self._template.opening(conversation) + conversation.answer_start
        return thoughts.cut(told, self.thought_marks).answer is None

    def _inputs(self, processor: ProcessorMixin, conversation: Conversation, images: Sequence[Image.Image]) -> dict:
        if conversation.answer_start and not self._starts_answers:
            raise BadRow(f"{type(processor).__name__} puts text of its own behind the beginning of an answer")
        if (placed := self._placed(neutral(conversation))) < conversation.num_images:
            by = "the chat template" if self._template.places_images else type(processor).__name__
            raise BadRow(f"{by} places {placed} of {plural(conversation.num_images, 'image')}")
        token = self._written(conversation)
        if token is None:
            self._refuse_forged(conversation)
            return self._run(processor, conversation, images)
        if not self._keeps_plain:
            raise self._forged(conversation, token)
        try:
            given = self._run(processor, conversation, images, plain=True)
            usual = self._run(processor, neutral(conversation), images)
        # Some processors count placeholders in texts too; some tokenizers write special tokens around each text.
        except BadRow as error:
            raise self._forged(conversation, token) from error
        counted, allowed = (self._controls.counted(each["input_ids"][0].tolist()) for each in (given, usual))
        if not counted <= allowed:
            token = next(iter(counted - allowed))
            raise self._forged(conversation, token)
        return given

    def _run(self, processor: ProcessorMixin, conversation: Conversation, images: Sequence[Image.Image],
             plain: bool = False) -> dict[str, Tensor]:  # fmt: skip
        messages = self._template.messages(conversation, images)
        # transformers keeps control tokens plain only where the template, not the tokenizer, writes the first token.
        more = self._template.arguments(conversation, self._first_token() if plain else "")
        more |= {"sanitize_control_tokens": True} if plain else {}
        try:
            given = processor.apply_chat_template(
                messages, add_generation_prompt=not conversation.is_answered, tokenize=True, return_dict=True,
                return_tensors="pt", **more,
            )  # fmt: skip
        except (MemoryError, ImportError):
            raise
        # Processors and templates raise whatever Python raises on what they did not foresee.
        except Exception as error:
            told = reason(error) or type(error).__name__
            raise BadRow(f"{type(processor).__name__} refuses it: {told}") from error
        if (largest := int(given["input_ids"].max())) >= self._known_ids:
            token = self._tokenizer.convert_ids_to_tokens(largest)
            raise BadRow(f"{self._place(conversation, token)} contains {token}, which the model has no embedding of")
        given = {name: value for name, value in given.items() if name != "labels"}
        # Some processors make them only when they are asked to, though their model does not run without.
        lacks_types = TOKEN_TYPES not in given and takes_token_types(type(self._config))
        if lacks_types and TOKEN_TYPES in processor.model_input_names:
            given[TOKEN_TYPES] = torch.tensor(processor.create_mm_token_type_ids(given["input_ids"].tolist()))
        return given

    def _first_token(self) -> str:
        """What puts the token that a tokenizer writes before each text into the template."""
        bos = self._tokenizer.bos_token_id
        return "{{ bos_token }}" if bos is not None and self._tokenizer.encode("") == [bos] else ""

    def _written(self, conversation: Conversation) -> str | None:
        """A control token that a text contains."""
        texts = (*conversation.texts(), conversation.answer_start)
        return next(filter(None, map(self._controls.first_in, texts)), None)

    def _refuse_forged(self, conversation: Conversation) -> None:
        """Raise BadRow where the texts make control tokens after all, put together or by normalisation."""
        for token in self._counts_of(conversation) - self._neutral_counts(neutral(conversation)):
            raise self._forged(conversation, token)

    def _placed_in(self, conversation: Conversation) -> int:
        """Images that the template has a place for; older processors drop the others without a word."""
        if not self._image_tokens:
            return min(conversation.num_images, self._most_images)
        more = self._counts_of(conversation) - self._counts_of(_without_images(conversation))
        return max(more[token] // number for token, number in self._image_tokens.items())

    def _counts_of(self, conversation: Conversation) -> Counter[str]:
        text = self._template.render(conversation)
        return self._controls.counted(self._tokenizer.encode(text, add_special_tokens=False))

    def _forged(self, conversation: Conversation, token: str) -> BadRow:
        return BadRow(f"{self._place(conversation, token)} contains the control token {token}")

    def _place(self, conversation: Conversation, token: str) -> str:
        found = next((message.role for message in conversation.messages if token in message.text), None)
        is_start = found is None and token in conversation.answer_start
        return "beginning of the answer" if is_start else _NAMES[found or "user"]

    def _ends(self) -> tuple[int, ...]:
        where = self.folder / "generation_config.json"
        ends = end_ids(self._tokenizer, read_json(where) if is_file(where) else {})
        written = first_special(self._tokenizer, behind_answer(self._template, Conversation.of(WORD))[1])
        ends = tuple(dict.fromkeys([*ends, *([] if written is None else [written])]))
        if not ends:
            raise ModelError(
                f"{self.folder} names no token that ends an answer: set eos_token in tokenizer_config.json"
            )
        return ends

    def _try_picture(self) -> list[int]:
        """The ids of a prompt with a picture. Raises ModelError where the processor leaves that out, or fails."""
        try:
            given = self._with_picture()
        except BadRow as error:
            if not self._template.places_image(self._controls.texts):
                raise self._template.no_place() from error
            raise explained(self.folder, error.__cause__ or error) from error
        except ImportError as error:
            raise explained(self.folder, error) from error
        ids = given["input_ids"][0].tolist()
        if set(ids).isdisjoint(self._media) and (self._media or not self._template.places_images):
            raise self._template.no_place()
        if not self._template.places_images and not self._places_two(ids):
            self._most_images = 1
            self._placed.cache_clear()
        return ids

    def _with_picture(self) -> dict[str, Tensor]:
        """Inputs of a prompt with a picture, by the processor as it is or handed its pictures in one list."""
        asked = Conversation.of(WORD)
        try:
            return self.inputs(asked, [_PICTURE])
        except BadRow as refused:
            # GOT-OCR 2 refuses the lists of lists that transformers hands to processors.
            self._processor = in_one_list(self._processor)
            try:
                return self.inputs(asked, [_PICTURE])
            except BadRow:
                raise refused from refused.__cause__

    def _places_two(self, ids: list[int]) -> bool:
        """Whether a processor that places images by itself does so with two; `ids` are those with one."""
        try:
            both = self.inputs(Conversation.of(WORD, 2), [_PICTURE, _PICTURE])["input_ids"][0].tolist()
        except BadRow:
            return False
        return sum(number in self._media for number in both) > sum(number in self._media for number in ids)

    def _try_start(self) -> bool:
        """Whether a prompt ends with the beginning of its answer. Raises ModelError where an end token stands there."""
        asked = Conversation(Conversation.of(WORD).messages, ANSWER)
        ids = self.inputs(asked, [_PICTURE])["input_ids"][0].tolist()
        if ids[-1] in self.eos_token_ids:
            raise ModelError(
                f"the tokenizer of {self.folder} writes {self._tokenizer.decode(ids[-1:])} behind each text, prompts "
                "too, as some trainings have it: copy its files from the model that was trained"
            )
        return self._tokenizer.decode(ids).endswith(ANSWER)


def _shape(conversation: Conversation) -> Conversation:
    """What the form of an answer depends on."""
    return Conversation(neutral(conversation).messages, conversation.answer_start)


def _without_images(conversation: Conversation) -> Conversation:
    def texts(message: Message) -> tuple[str, ...]:
        return tuple(part for part in message.content if isinstance(part, str)) or (WORD,)

    messages = tuple(replace(message, content=texts(message)) for message in conversation.messages)
    return replace(conversation, messages=messages)


def _head(conversation: Conversation) -> tuple:
    """All up to the last image."""
    parts = [(number, message.role, part) for number, message in enumerate(conversation.messages)
             for part in message.content]  # fmt: skip
    last = max((place for place, (_, _, part) in enumerate(parts) if isinstance(part, int)), default=-1)
    return tuple(parts[: last + 1])


def _cut(value: Tensor, whole: int, length: int) -> Tensor:
    """The first of the values that there is one of for each token of a batch of one."""
    return value[:, :length] if isinstance(value, Tensor) and value.shape[:2] == (1, whole) else value
