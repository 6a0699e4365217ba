"""What the public functions take as a question: images in several forms, and a text or chat messages."""

from collections.abc import Mapping, Sequence

from PIL import Image

from data_engine.flags import require
from data_engine.questions.conversation import Conversation
from data_engine.questions.images import Exif, open_image
from data_engine.questions.messages import conversation_of, with_images

Images = Image.Image | bytes | Sequence[Image.Image | bytes] | None


def asked(
    image: Images, question: str | Sequence[Mapping], max_megapixels: float, exif: Exif
) -> tuple[Conversation, list[Image.Image]]:
    """The conversation and its opened images. A text stands behind the images.

    Raises images.BadImage, a ValueError, for an image that cannot be read, and for messages that are none; UserError
    for what is neither.
    """
    require(question is not None, "question must be a text or chat messages, got None")
    several = list(image) if isinstance(image, Sequence) and not isinstance(image, str | bytes) else [image]
    several = [] if image is None else several
    for one in several:
        told = f"image must be a PIL image, the bytes of a file, a list of these, or None; got {type(one).__name__}"
        require(isinstance(one, Image.Image | bytes), told)
    pictures = [open_image(one, max_megapixels, exif) for one in several]
    if isinstance(question, str):
        return Conversation.of(question, len(pictures)), pictures
    return with_images(conversation_of(list(question)), len(pictures)), pictures
