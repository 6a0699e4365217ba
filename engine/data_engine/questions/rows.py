"""What both model stages do with a row of the input: read its image, and leave it out with a reason where they must."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image

from data_engine.questions import images
from data_engine.questions.dataset import Question

Decode = Callable[[bytes | None, float], Image.Image]
"""images.decode, or the same in another process"""


# Why a question is left out that exceeds the memory on its own, and what is said where no question ever fitted.
OUT_OF_MEMORY = "out of memory, even with one answer at a time"
NO_ROOM = (
    f"{OUT_OF_MEMORY}: the model leaves no room for a single question; free the device's memory, lower "
    "--max_new_tokens, or split the model with --zero3 on"
)


class BadRow(ValueError):
    """A row that a stage cannot use; the message is the reason that the quarantine records."""


@dataclass(frozen=True)
class UnitResult:
    """What a unit of a stage comes to: its table, and the rows that were left out as (idx, reason)."""

    table: pa.Table
    quarantined: list[tuple[int | str, str]]
    retries: int = 0
    """how often memory ran out and the work went on in halves: its numbers may then differ in their last bits"""


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
