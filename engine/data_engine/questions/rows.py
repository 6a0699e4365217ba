"""The image of a row, or of what the public API is given."""

from collections.abc import Callable

from PIL import Image

from data_engine.errors import BadRow
from data_engine.questions import images
from data_engine.questions.dataset import Question

Decode = Callable[[bytes | None, float], Image.Image]
"""images.decode, or the same in another process"""


def read_image(question: Question, max_megapixels: float, decode: Decode = images.decode) -> Image.Image:
    """The decoded image of a row. Raises BadRow or images.BadImage with the reason that goes into the quarantine."""
    if question.problem:
        raise BadRow(question.problem)
    return decode(question.image, max_megapixels)


def open_image(image: Image.Image | bytes, max_megapixels: float) -> Image.Image:
    """What the public API takes as an image, as RGB. Raises images.BadImage."""
    if isinstance(image, Image.Image):
        images.check_megapixels(*image.size, max_megapixels, "source image")
        return images.to_rgb(image)
    return images.decode(image, max_megapixels)
