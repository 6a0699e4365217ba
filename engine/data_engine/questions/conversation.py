"""What a model is asked: messages with any number of images, also none, and, if wanted, the beginning of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn. `content` holds texts, and images by their number, counted from 0 over the whole conversation."""

    role: Role
    content: tuple[str | int, ...]

    @property
    def text(self) -> str:
        """Its texts, one after the other, without the images."""
        return "".join(part for part in self.content if isinstance(part, str))


@dataclass(frozen=True)
class Conversation:
    """Messages that end with one of the user, whose answer is wanted; or with that answer, which is to be judged."""

    messages: tuple[Message, ...]
    answer_start: str = ""
    """the beginning of the answer, which the model goes on with"""

    @classmethod
    def of(cls, question: str, num_images: int = 1, system: str | None = None) -> "Conversation":
        """One question behind its images."""
        asked = Message("user", (*range(num_images), question))
        return cls((asked,)).with_system(system)

    def with_system(self, system: str | None) -> "Conversation":
        """With a system text before everything, where it has none of its own."""
        if system is None or self.system is not None:
            return self
        return replace(self, messages=(Message("system", (system,)), *self.messages))

    def without_images(self) -> "Conversation":
        """The conversation without its images; a message that had nothing else has an empty text."""
        messages = (
            replace(message, content=tuple(part for part in message.content if isinstance(part, str)) or ("",))
            for message in self.messages
        )
        return replace(self, messages=tuple(messages))

    def answered(self, answer: str) -> "Conversation":
        """With the answer as its last message."""
        return Conversation((*self.messages, Message("assistant", (self.answer_start + answer,))))

    @property
    def is_answered(self) -> bool:
        """Whether it ends with an answer: no other one is to begin behind it."""
        return self.messages[-1].role == "assistant"

    @property
    def system(self) -> str | None:
        first = self.messages[0]
        return first.text if first.role == "system" else None

    @property
    def question(self) -> str:
        """The text of the message that is to be answered."""
        return self.messages[-1].text

    @property
    def num_images(self) -> int:
        return sum(isinstance(part, int) for message in self.messages for part in message.content)

    @property
    def is_single(self) -> bool:
        """One image and one question, with nothing around them: what a row of `dataset/` can hold."""
        [*before, asked] = self.messages
        return not before and not self.answer_start and len(asked.content) == 2 and asked.content[0] == 0

    def texts(self) -> Sequence[str]:
        """Every text in it that a row of the dataset, or a flag, brought."""
        return [part for message in self.messages for part in message.content if isinstance(part, str)]
