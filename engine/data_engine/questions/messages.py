"""Messages in chat format, as a row brings them, into a conversation with its images numbered.

A message is {"role": ..., "content": ...}; its content is a text, or a list of {"type": "text", "text": ...} and
{"type": "image"}. What is wrong with a row is a BadImage, whose message is the reason for which it is left out.
"""

import json
import typing
from collections.abc import Callable

import pyarrow as pa

from data_engine.questions.conversation import Conversation, Message, Role
from data_engine.questions.images import BadImage
from data_engine.questions.row_images import limited
from data_engine.questions.sources.column_types import is_list
from data_engine.schemas import without_image_marker

# The place of an image in a text, as of LLaVA and LLaMA-Factory.
MARKER = "<image>"
MAX_TEXT_BYTES = 1 << 20
"""Limit of all texts of a row: a longer one exceeds every model's context, and would take long to tokenize"""
# Of the cell, with the names and types around the texts, and with each byte of them written as \u00xx.
_MAX_CELL_BYTES = 8 * MAX_TEXT_BYTES
_ROLES = typing.get_args(Role)
# Where other formats keep the image itself in a part of a message.
_OWN_IMAGE = ("image", "image_url", "url", "path", "base64", "bytes")
# An image part before its number is known.
_UNNUMBERED = -1


def messages_in(cell: pa.Scalar, read: Callable[[pa.Scalar], object]) -> object | None:
    """What stands in a cell, a list, which `read` gives, or its text in JSON; None where it is null or blank."""
    try:
        if not is_list(cell.type):
            data = limited(cell, _MAX_CELL_BYTES, "messages")
            # From text: of bytes, json would guess the coding.
            return json.loads(data.decode()) if data and data.strip() else None
        if cell.is_valid and cell.values.nbytes > _MAX_CELL_BYTES:
            raise BadImage(f"messages has {cell.values.nbytes} bytes, more than {_MAX_CELL_BYTES}")
        return read(cell)
    except UnicodeDecodeError:
        raise BadImage("messages is not valid UTF-8") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage('messages is text, but not JSON; expected a list of {"role": ..., "content": ...}') from None


def conversation_of(found: object) -> Conversation:
    """What `messages_in` found, with its images not numbered yet."""
    if not isinstance(found, list) or not found:
        what = "an empty list" if found == [] else f"{json.dumps(found, default=str)[:60]}"
        raise BadImage(f'messages is {what}; expected a list of {{"role": ..., "content": ...}}')
    messages = tuple(_message(item, f"message {number}") for number, item in enumerate(found, 1))
    if any(message.role == "system" for message in messages[1:]):
        raise BadImage("a message of the system stands behind others; it can only be the first")
    if messages[-1].role != "user":
        raise BadImage(
            f"the last message must be the user's, whose answer is wanted; it is one of the {messages[-1].role}: leave "
            "it out"
        )
    _check_texts(messages)
    _check_order(found)
    return Conversation(messages)


def with_images(conversation: Conversation, num_images: int) -> Conversation:
    """With each image at its place: at image parts; or else where the user's texts say <image>; or else before the
    first of them. None of his texts says <image> then.

    Raises BadImage where parts or markers are there, and are not as many as the images.
    """
    messages = conversation.messages
    parts = sum(part == _UNNUMBERED for message in messages for part in message.content)
    if parts not in (0, num_images):
        raise BadImage(f"the number of image parts in the messages is {parts}, of images {num_images}")
    asked = (part for message in messages if message.role == "user" for part in message.content)
    marks = sum(part.count(MARKER) for part in asked if isinstance(part, str))
    if marks not in (0, num_images):
        raise BadImage(
            f"the number of {MARKER} in the texts is {marks}, of images {num_images}; write it once for each image, or "
            "not at all"
        )
    if parts:
        messages = tuple(map(_unmarked, messages))
    elif marks:
        messages = tuple(map(_split, messages))
    elif num_images:
        messages = _in_front(messages, num_images)
    numbers = iter(range(num_images))
    return Conversation(
        tuple(
            Message(one.role, tuple(next(numbers) if part == _UNNUMBERED else part for part in one.content))
            for one in messages
        )
    )


def question_with_images(question: str, num_images: int, system: str | None = None) -> Conversation:
    """One question: behind its image if there is one, else as `with_images` has it. Raises BadImage as that does."""
    asked = with_images(Conversation((Message("user", (question,)),)), num_images)
    if num_images == 1:
        # LLaVA's data say `<image>` anywhere, and its trainers put the picture first.
        asked = Conversation.of(without_image_marker(question))
    return asked.with_system(system)


def _message(item: object, where: str) -> Message:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        raise BadImage(f'{where} is not an object with "role" and "content"')
    role, content = item["role"], item["content"]
    if role not in _ROLES:
        raise BadImage(f"{where} has the role {json.dumps(role, default=str)[:60]}; expected {', '.join(_ROLES)}")
    if isinstance(content, str):
        return Message(role, (content,))
    if not isinstance(content, list) or not content:
        raise BadImage(f"{where} has no content; expected a text, or a list of parts of the types text and image")
    return Message(role, tuple(_part(part, where) for part in content))


def _part(part: object, where: str) -> str | int:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    own = [name for name in _OWN_IMAGE if isinstance(part, dict) and part.get(name) is not None]
    if own and kind != "text":
        shown = 'images stand in the column "images", as docs/datasets.md shows'
        raise BadImage(f'{where} has an image of its own, in "{own[0]}"; {shown}')
    if kind != "image":
        shown = f", but one of the type {json.dumps(kind, default=str)[:60]}" if kind not in (None, "text") else ""
        raise BadImage(
            f'{where} has a part that is neither {{"type": "text", "text": ...}} nor {{"type": "image"}}{shown}'
        )
    return _UNNUMBERED


def _check_texts(messages: tuple[Message, ...]) -> None:
    try:
        size = sum(len(message.text.encode()) for message in messages)
    except UnicodeEncodeError:
        raise BadImage("messages is not valid UTF-8") from None
    if size > MAX_TEXT_BYTES:
        raise BadImage(f"messages has {size} bytes of text, more than {MAX_TEXT_BYTES}")


def _check_order(found: list[dict]) -> None:
    """Some formats number the images: a row is left out where that is not the order in which they are named."""
    contents = [item["content"] for item in found if isinstance(item["content"], list)]
    images = [part for content in contents for part in content if part["type"] == "image"]
    for number, part in enumerate(images):
        index = part.get("index")
        if index not in (None, number):
            shown = json.dumps(index, default=str)[:60]
            raise BadImage(f'image part {number + 1} has the index {shown}, expected {number}: the order of "images"')


def _split(message: Message) -> Message:
    """One of the user with its texts cut at the markers, which become places of images."""
    if message.role != "user":
        return message
    content: list[str | int] = []
    for text in message.content:
        for number, piece in enumerate(text.split(MARKER)):
            content += [_UNNUMBERED] * (number > 0) + [piece] * bool(piece)
    return Message(message.role, tuple(content))


def _unmarked(message: Message) -> Message:
    """One of the user without the markers, where image parts tell the places."""
    if message.role != "user":
        return message
    parts = (part if isinstance(part, int) else without_image_marker(part) for part in message.content)
    return Message(message.role, tuple(parts))


def _in_front(messages: tuple[Message, ...], num_images: int) -> tuple[Message, ...]:
    first = next(number for number, message in enumerate(messages) if message.role == "user")
    asked = Message("user", (*[_UNNUMBERED] * num_images, *messages[first].content))
    return (*messages[:first], asked, *messages[first + 1 :])
