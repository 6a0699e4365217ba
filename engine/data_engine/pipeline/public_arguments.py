"""What the public functions take as a question: images in several forms, and a text or chat messages."""

from collections.abc import Mapping, Sequence
from typing import get_args

from PIL import Image

from data_engine.flags import require
from data_engine.questions.conversation import Conversation
from data_engine.questions.images import Exif, open_image
from data_engine.questions.messages import conversation_of, question_with_images, with_images

Images = Image.Image | bytes | Sequence[Image.Image | bytes] | None
_BYTES = (bytes, bytearray, memoryview)


def read_question(
    image: Images, question: str | Sequence[Mapping], max_megapixels: float, exif: Exif
) -> tuple[Conversation, list[Image.Image]]:
    """The conversation and its opened images, as a row of a dataset with this question would have them.

    Raises images.BadImage, a ValueError, for an image that cannot be read, for messages that are none, and where
    `<image>` does not stand once for each image; UserError for what is neither, and for an unknown `exif`.
    """
    is_chat = isinstance(question, Sequence) and not isinstance(question, _BYTES)
    found = type(question).__name__ if question is not None else None
    require(isinstance(question, str) or is_chat, f"question must be a text or chat messages, got {found}")
    require(exif in get_args(Exif), f'exif must be "apply" or "ignore", got {exif!r}')
    several = list(image) if isinstance(image, Sequence) and not isinstance(image, (str, *_BYTES)) else [image]
    several = [] if image is None else several
    for one in several:
        told = f"image must be a PIL image, the bytes of a file, a list of these, or None; got {type(one).__name__}"
        require(isinstance(one, (Image.Image, *_BYTES)), told)
    several = [bytes(one) if isinstance(one, _BYTES) else one for one in several]
    pictures = [open_image(one, max_megapixels, exif) for one in several]
    if isinstance(question, str):
        require_unicode("question", question)
        return question_with_images(question, len(pictures)), pictures
    return with_images(conversation_of(list(question)), len(pictures)), pictures


def require_model(model: object) -> None:
    """Raise UserError for what load_model did not give, such as the path of a checkpoint."""
    # The protocol VisionLanguageModel has many members; nothing but a loaded model has this one.
    is_model = hasattr(model, "why_plain")
    require(is_model, f"model must be what load_model gives, got {type(model).__name__}")


def require_unicode(name: str, text: str) -> None:
    """Raise UserError for half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = f"character {error.start}, counted from 0, is half of a surrogate pair"
        require(False, f"{name} is no text that can be written in UTF-8: {place}")
