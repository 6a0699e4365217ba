"""A checkpoint without its weights, for another engine: prompts as token ids and pictures, and ids to text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL.Image import Image

from data_engine.questions.conversation import Conversation
from data_engine.questions.thoughts import ReadAnswer


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as another engine takes it."""

    ids: list[int]
    """as the template writes them: what stands for a picture once, however many tokens the picture takes"""
    images: Sequence[Image]
    """padded, cropped and resized where the family does so before its processor would"""
    expanded: list[int]
    """the ids that the model is to see, each picture with all its tokens"""

    @property
    def length(self) -> int:
        return len(self.expanded)


class PromptMaker(Protocol):
    """Everything of a VisionLanguageModel that sampling by another engine needs; what has the same name is the same."""

    family: str
    folder: Path
    eos_token_ids: tuple[int, ...]
    banned_token_ids: tuple[int, ...]
    max_positions: int
    is_settled: bool
    """True: there is no path to decide on"""

    def prompt(
        self, conversation: Conversation, images: Sequence[Image], crop: bool, max_megapixels: float
    ) -> TokenPrompt:
        """See VisionLanguageModel.prompt, whose pixels and ids the other engine is to come to."""

    def text(self, token_ids: list[int]) -> str:
        """See VisionLanguageModel.text."""

    def read_answer(self, conversation: Conversation, token_ids: list[int]) -> ReadAnswer:
        """See VisionLanguageModel.read_answer."""
