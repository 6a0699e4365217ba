"""The questions of a batch of rows, from the cells of its columns: of each a conversation, and its images."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.images import BadImage
from data_engine.questions.messages import (
    MAX_TEXT_BYTES,
    conversation_of,
    messages_in,
    question_with_images,
    with_images,
)
from data_engine.questions.row_images import ImageCell, ImageCells, chosen_cells, limited, text_as_lists
from data_engine.questions.sources.column_types import as_bytes, is_list, value_reader


@dataclass(frozen=True)
class Unnumbered:
    """A conversation as its row brought it: with the row's own system text, and its images not numbered."""

    conversation: Conversation
    is_question: bool
    """it stood in the column of questions, not in the one of messages"""

    def with_images(self, num_images: int) -> Conversation:
        """With its images numbered. Raises BadImage where their number is not the one that its texts ask for."""
        if self.is_question:
            return question_with_images(self.conversation.question, num_images, self.conversation.system)
        return with_images(self.conversation, num_images)

    def keeps_text(self, num_images: int) -> bool:
        """Whether the row's digest is of its question as it stands, wherever that names its image."""
        return self.is_question and num_images < 2


class QuestionBatch:
    """The questions of a batch. Where a row cannot be used, reading it raises BadImage, with the reason."""

    def __init__(self, batch: pa.RecordBatch, columns: Sequence[str]):
        self._columns = columns
        self._questions, self._messages, self._systems = (
            _texts(batch.column(name)) if name in columns else None for name in ("question", "messages", "system")
        )
        self._read = value_reader(self._messages.type) if self._messages is not None else None
        self._image = ImageCells(batch.column("image")) if "image" in columns else None
        self._images = ImageCells(text_as_lists(batch.column("images"))) if "images" in columns else None

    def unnumbered(self, row: int) -> Unnumbered:
        """The conversation of a row, before its images are looked at."""
        question, system = _text(self._questions, row, "question"), _text(self._systems, row, "system")
        # A blank cell is one without a text.
        system = system if system and system.strip() else None
        messages = messages_in(self._messages[row], self._read) if self._messages is not None else None
        if messages is not None:
            conversation = conversation_of(messages)
            if question and question != conversation.question:
                raise BadImage("row has a question, and messages that end with another one; leave one of the two null")
        elif question is None:
            raise BadImage("question is null")
        else:
            conversation = Conversation((Message("user", (question,)),))
        if system and conversation.system not in (None, system):
            raise BadImage("row has a system text, and another one in its messages; leave one of the two out")
        return Unnumbered(conversation.with_system(system), messages is None)

    def images(self, row: int) -> list[ImageCell]:
        """The images of a row, not read yet."""
        image, images = (cells and cells.of_row(row) for cells in (self._image, self._images))
        return chosen_cells(image, images, self._columns)


def _texts(column: pa.Array) -> pa.Array:
    """A column of text as bytes; one of lists as it is."""
    return column if is_list(column.type) else as_bytes(column)


def _text(column: pa.Array | None, row: int, name: str) -> str | None:
    data = None if column is None else limited(column[row], MAX_TEXT_BYTES, name)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        raise BadImage(f"{name} is not valid UTF-8") from None
