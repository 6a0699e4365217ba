"""What the public functions take as a question: images in several forms, and a text or chat messages."""

from collections.abc import Mapping, Sequence

from PIL import Image

from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.images import Exif, open_image

Images = Image.Image | bytes | Sequence[Image.Image | bytes] | None


def asked(
    image: Images, question: str | Sequence[Mapping], max_megapixels: float, exif: Exif
) -> tuple[Conversation, list[Image.Image]]:
    """The conversation and its opened images. A text stands behind the images.

    Raises images.BadImage for an image that cannot be read, ValueError for messages that are none.
    """
    several = [] if image is None else [image] if isinstance(image, Image.Image | bytes) else list(image)
    pictures = [open_image(one, max_megapixels, exif) for one in several]
    if isinstance(question, str):
        return Conversation.of(question, len(pictures)), pictures
    return conversation_of(question, len(pictures)), pictures


def conversation_of(messages: Sequence[Mapping], num_images: int) -> Conversation:
    """Chat messages in transformers' format; image parts take the images in their order."""
    numbers = iter(range(num_images))
    made = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        made.append(
            Message(message["role"], tuple(part["text"] if part["type"] == "text" else next(numbers) for part in parts))
        )
    return Conversation(tuple(made))
