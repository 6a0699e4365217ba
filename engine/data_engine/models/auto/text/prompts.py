"""Prompts of a checkpoint of transformers for another engine, which has the weights and the same processor."""

import threading
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.errors import BadRow
from data_engine.models.auto.config import load_config
from data_engine.models.auto.limits import NEEDS_IMAGE, NEEDS_PIXELS, check_size, fast_positions, needs_pixels
from data_engine.models.auto.text.chat import Chat
from data_engine.models.prompt_maker import TokenPrompt
from data_engine.questions.conversation import Conversation
from data_engine.questions.thoughts import ReadAnswer


class AutoPrompts:
    """The protocol is models.prompt_maker.PromptMaker."""

    family, is_settled = "auto", True

    def __init__(self, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> None:
        """Raises ModelError naming what is wrong with the folder."""
        self.folder, self._chat = folder, Chat.load(folder, chat)
        self.eos_token_ids, self.banned_token_ids = self._chat.eos_token_ids, self._chat.banned_token_ids
        config = load_config(folder)
        text = config.get_text_config(decoder=True)
        # The scoring stage's, so that no answer is drawn that is too long for it.
        self.max_positions = min(text.max_position_embeddings, fast_positions(text))
        # Layers of their own for images run on nothing without one.
        self._needs_image = bool(getattr(text, "cross_attention_layers", ()))
        self._needs_pixels = needs_pixels(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)])
        # Tokenizers keep state while they encode, and prompts are made by several threads.
        self._one_at_a_time = threading.Lock()

    def prompt(
        self, conversation: Conversation, images: Sequence[Image.Image], crop: bool, max_megapixels: float
    ) -> TokenPrompt:
        for image in images:
            check_size(image, self._chat.shortest_edge, max_megapixels)
        if not images and self._needs_pixels:
            raise BadRow(NEEDS_PIXELS)
        if not images and self._needs_image:
            raise BadRow(NEEDS_IMAGE)
        with self._one_at_a_time:
            expanded = self._chat.inputs(conversation, images)["input_ids"][0].tolist()
            return TokenPrompt(self._chat.written_ids(conversation, images), images, expanded)

    def text(self, token_ids: list[int]) -> str:
        with self._one_at_a_time:
            return self._chat.text(token_ids)

    def read_answer(self, conversation: Conversation, token_ids: list[int]) -> ReadAnswer:
        with self._one_at_a_time:
            return self._chat.read_answer(conversation, token_ids)
