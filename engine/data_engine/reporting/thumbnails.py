"""Small JPEG pictures of the questions that are shown, each once, within a limit of bytes."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from data_engine.questions import images
from data_engine.questions.dataset import Question, Questions, is_other

PIXELS = 256
# Of a question with several pictures.
MOST_OF_A_QUESTION = 4
QUALITIES = (75, 45)
# Questions that follow each other so closely are read as one run of rows.
NEAR = 32
# What is said of a question that has none.
NO_PICTURE = "no picture"
EXCHANGED = "its question or picture is not the one that its answers were sampled from"
Decode = Callable[[bytes | None], Image.Image]


@dataclass
class Shown:
    """A question that is shown."""

    text: str
    pictures: list[int]
    """numbers of its thumbnails"""
    problem: str
    """why it has none"""
    num_left_out: int = 0
    """further pictures, which are not shown"""
    before: list[tuple[str, str]] = field(default_factory=list)
    """role and text of the turns before it, of a chat"""
    missing: bool = False
    """the problem is not the question's: a picture is not where it is looked for"""

    @property
    def is_unread(self) -> bool:
        """Whether it has pictures, which could not be read."""
        return not self.pictures and self.problem != NO_PICTURE


@dataclass
class Gallery:
    """The questions and their thumbnails."""

    questions: dict[int | str, Shown] = field(default_factory=dict)
    jpegs: list[bytes] = field(default_factory=list)
    _numbers: dict[bytes, int] = field(default_factory=dict)

    def add(self, question: Question, decode: Decode, is_same: bool = True) -> None:
        """Add a question, and those of its pictures that are not there yet; none where it is another one by now."""
        pictures, problem = [], question.problem or (NO_PICTURE if is_same else EXCHANGED)
        try:
            for data in question.images[:MOST_OF_A_QUESTION] if is_same else ():
                pictures.append(self._number(data, decode))
        except images.BadImage as error:
            pictures, problem = [], str(error)
        left_out = max(0, len(question.images) - MOST_OF_A_QUESTION) if pictures else 0
        turns = question.conversation.messages[:-1] if question.conversation is not None else ()
        before = [(turn.role, turn.text) for turn in turns if turn.role != "system"]
        self.questions[question.idx] = Shown(
            question.question or "", pictures, problem, left_out, before, question.missing or not is_same
        )

    def _number(self, data: bytes, decode: Decode) -> int:
        key = hashlib.blake2b(data, digest_size=16).digest()
        if key not in self._numbers:
            jpeg = thumbnail(decode(data))
            self._numbers[key] = len(self.jpegs)
            self.jpegs.append(jpeg)
        return self._numbers[key]

    def lower_quality(self) -> None:
        """Encode all thumbnails again, smaller."""
        self.jpegs = [thumbnail(Image.open(io.BytesIO(jpeg)), QUALITIES[1]) for jpeg in self.jpegs]


def read_gallery(
    questions: Questions,
    wanted: Sequence[int | str],
    decode: Decode,
    digest_of: Callable[[int], str | None] = lambda row: None,
) -> Gallery:
    """The questions of these idx; only the rows around them are read.

    `digest_of` gives the Question.digest that a row had when its answers were sampled, None where it is not known.
    """
    places, found, asked = {}, Gallery(), set(wanted)
    for row, idx in enumerate(questions.idx):
        if idx in asked:
            places[row] = idx
    rows = sorted(places)
    at = 0
    while at < len(rows):
        end = at + 1
        while end < len(rows) and rows[end] - rows[end - 1] <= NEAR:
            end += 1
        for row, question in enumerate(questions.rows(range(rows[at], rows[end - 1] + 1)), rows[at]):
            if row in places:
                found.add(question, decode, not is_other(question, digest_of(row)))
        at = end
    return found


def thumbnail(image: Image.Image, quality: int = QUALITIES[0]) -> bytes:
    """A JPEG of at most PIXELS on each side."""
    image.thumbnail((PIXELS, PIXELS))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()
