"""Messages to the text of a prompt, through the checkpoint's own chat template or the user's."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from PIL.Image import Image
from transformers import ProcessorMixin

from data_engine.chat_settings import ChatSettings
from data_engine.errors import BadRow, UserError
from data_engine.models.checkpoints.json_files import ModelError, reason
from data_engine.questions.conversation import Conversation, Message

# Texts that no template has, to see where it puts those of messages.
WORD, ANSWER = "Quagga", "Okapi"
# A prompt must not change by the day on which a run goes on: the day that Llama's templates name without a clock.
_DAY = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri",
        "%H": "12", "%M": "00", "%S": "00"}  # fmt: skip
_REPLACED = "".join(f" | replace('{code}', '{value}')" for code, value in _DAY.items())
_NO_CLOCK = f"{{%- macro strftime_now(format) -%}}{{{{ format{_REPLACED} }}}}{{%- endmacro %}}\n"
# Carries Conversation.answer_start: transformers keeps variables of a template as plain as it keeps messages.
_START = "data_engine_answer_start"
# Variables that transformers or this module give.
_OURS = frozenset(("messages", "tools", "documents", "conversation", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "load_audio_from_video", "processor_kwargs", "sanitize_control_tokens", _START))  # fmt: skip


def neutral(conversation: Conversation) -> Conversation:
    """The same conversation with a word in the place of each of its texts."""

    def of(part: str | int) -> str | int:
        return WORD if isinstance(part, str) and part.strip() else part

    messages = (replace(message, content=tuple(map(of, message.content))) for message in conversation.messages)
    return Conversation(tuple(messages), of(conversation.answer_start))


class ChatTemplate:
    """A template that takes a question behind an image; whether it takes a system text and turns, it finds out."""

    def __init__(self, processor: ProcessorMixin, settings: ChatSettings, folder: Path) -> None:
        """Raises ModelError where there is no template, or none for images; UserError for a variable of ours."""
        self._processor = processor
        self.name = "--chat_template" if settings.template is not None else f"the chat template of {folder}"
        """what messages call it"""
        ours = sorted(_OURS & set(settings.kwargs))
        if ours:
            raise UserError(f"{settings.flag} has {ours[0]!r}, which the engine sets by itself: leave it out")
        self.source = _without_clock(_source(processor, settings, folder))
        known = self._variables()
        self._kwargs = {name: value for name, value in settings.kwargs.items() if name in known}
        self.unused_kwargs = tuple(sorted(set(settings.kwargs) - known))
        """names of --chat_template_kwargs that this template does not read"""
        self._as_text: set[str] = set()
        self._refused: dict[str, str] = {}
        for role in ("user", "system", "assistant"):
            self._try(role)
        self.places_images = self._places_images()
        """whether it writes something for an image; else the processor may place images by itself, as BLIP-2's"""

    def messages(self, conversation: Conversation, images: Sequence[Image] | None = None) -> list[dict]:
        """As transformers takes them. Raises BadRow for a role that the template does not take."""
        return [self._message(message, images) for message in conversation.messages]

    def arguments(self, conversation: Conversation, first: str = "") -> dict[str, object]:
        """Of apply_chat_template: the template, behind `first`, and its variables."""
        source = first + self.source
        if not conversation.answer_start:
            return {"chat_template": source, **self._kwargs}
        # Jinja drops one line feed at the end of a template, which would no longer be its end.
        source = f"{source.removesuffix(chr(10))}{{{{ {_START} }}}}"
        return {"chat_template": source, _START: conversation.answer_start, **self._kwargs}

    def render(self, conversation: Conversation, answer: str | None = None) -> str:
        """The prompt as text, or the whole conversation where it has its answer, or `answer` is one.

        Raises BadRow in the template's own words.
        """
        messages = self.messages(conversation)
        if answer is not None:
            messages.append(self._message(Message("assistant", (answer,)), None))
        return self._rendered(messages, conversation, opens_answer=answer is None and not conversation.is_answered)

    def _rendered(self, messages: list[dict], conversation: Conversation, opens_answer: bool) -> str:
        try:
            return self._processor.apply_chat_template(
                messages, add_generation_prompt=opens_answer, tokenize=False, **self.arguments(conversation)
            )
        # A template may raise what its expressions raise, TypeError for one.
        except Exception as error:
            raise BadRow(f"the chat template refuses it: {reason(error)}") from error

    def opening(self, conversation: Conversation) -> str:
        """What the template writes behind a conversation, before the answer: the header of its turn, or more."""
        asked = Conversation(conversation.messages)
        prompt, before = self.render(asked), ""
        with contextlib.suppress(BadRow):
            before = self._rendered(self.messages(asked), asked, opens_answer=False)
        pairs = enumerate(zip(prompt, before, strict=False))
        shared = next((place for place, (one, other) in pairs if one != other), min(len(prompt), len(before)))
        if before and len(prompt) > shared:
            return prompt[shared:]
        # A template that writes it in any case: it stands behind the last text.
        return self.render(neutral(asked)).rpartition(WORD)[2]

    def _message(self, message: Message, images: Sequence[Image] | None) -> dict:
        if message.role in self._refused:
            raise BadRow(f"the model's chat template takes no {message.role} message: {self._refused[message.role]}")
        if message.role in self._as_text:
            if message.text != "".join(map(str, message.content)):
                raise BadRow(f"the model's chat template takes no image in a {message.role} message")
            return {"role": message.role, "content": message.text}
        return {"role": message.role, "content": [_part(part, images) for part in message.content]}

    def _try(self, role: str) -> None:
        """Learn in which form the template takes messages of a role, if at all."""
        before = (Message("user", (WORD,)),) if role == "assistant" else ()
        after = () if role == "user" else (Message("user", (WORD,)),)
        asked = Conversation((*before, Message(role, (ANSWER,)), *after))
        told = "it leaves their text out"
        for form in ("parts", "text"):
            self._as_text = self._as_text - {role} | ({role} if form == "text" else set())
            try:
                text = self.render(asked)
            except BadRow as error:
                told = str(error).removeprefix("the chat template refuses it: ")
                continue
            # A template that expects a text prints a list, with its texts in quotes.
            if ANSWER in text and f"'{ANSWER}'" not in text and f'"{ANSWER}"' not in text:
                return
        if role == "user":
            raise ModelError(f"{self.name} cannot be used: {told}; --chat_template FILE replaces it")
        self._refused[role] = told

    def places_image(self, tokens: Sequence[str]) -> bool:
        """Whether an image puts one of these tokens into the prompt."""
        with_image, without = (self.render(Conversation.of(WORD, num_images)) for num_images in (1, 0))
        return any(with_image.count(token) > without.count(token) for token in tokens)

    def no_place(self) -> ModelError:
        return ModelError(
            f"{self.name} has no place for images: pass one that has with --chat_template FILE, or another model"
        )

    def _places_images(self) -> bool:
        if "user" in self._as_text:
            raise self.no_place()
        try:
            with_image = self.render(Conversation.of(WORD))
        except BadRow as error:
            raise ModelError(f"{self.name} cannot be used: {error}") from error
        return with_image != self.render(Conversation.of(WORD, 0))

    def _variables(self) -> set[str]:
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation])
        try:
            return jinja2.meta.find_undeclared_variables(environment.parse(self.source))
        except jinja2.TemplateError as error:
            raise ModelError(f"{self.name} is not a Jinja template: {reason(error)}") from error


class _Generation(jinja2.ext.Extension):
    """The tag of transformers around what an assistant writes."""

    tags = frozenset(("generation",))

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _part(part: str | int, images: Sequence[Image] | None) -> dict[str, object]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image"} if images is None else {"type": "image", "image": images[part]}


def _without_clock(source: str) -> str:
    return f"{_NO_CLOCK}{source}" if "strftime_now" in source else source


def _source(processor: ProcessorMixin, settings: ChatSettings, folder: Path) -> str:
    if settings.template is not None:
        return settings.template
    own = processor.chat_template or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(own, Mapping):
        if "default" not in own:
            raise ModelError(
                f"{folder} has chat templates {', '.join(sorted(own))}, and none of the name default: pass one of them "
                "with --chat_template FILE"
            )
        own = own["default"]
    if not own:
        raise ModelError(f"{folder} has no chat template: pass one with --chat_template FILE")
    return own
