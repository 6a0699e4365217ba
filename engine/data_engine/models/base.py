"""The protocol of a model family: it turns a conversation and its images into a prompt, and text into ids.

Sampling and scoring see prompts, the decoder's layers and the head, and are written once for all families.
Shapes: P prompt tokens, K rows, T tokens, V vocabulary, D width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers.cache_utils import Cache

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.models.layers.head import Head
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.prompt_maker import PromptMaker
from data_engine.questions.conversation import Conversation
from data_engine.questions.thoughts import KNOWN, Marks, ReadAnswer


class Split(Protocol):
    """How a model is split over ranks while it is loaded, as sharding.zero3.Zero3Split does."""

    reads: bool
    """whether this rank reads the divided weights from disk, and sends the other ranks their shares"""

    def divides(self, name: str) -> bool:
        """Whether the weight of this name in the family's modules is divided; the others stay whole on each rank."""

    def divide(self, value: Tensor) -> nn.Parameter:
        """A parameter of which this rank keeps its share. A rank that does not read passes an empty tensor."""

    def release(self) -> None:
        """Free the weights of the model that was divided last."""

    def run_together(self, model: "VisionLanguageModel") -> None:
        """Have all ranks make each call of the model's decoder and vision tower at the same time."""


class Prompt(Protocol):
    """What a family made of a conversation and its images, on the host."""

    length: int
    """P: tokens of the prompt, those of images included"""


class PromptEnd(NamedTuple):
    """What a family says of a prompt that it ran."""

    hidden_D: Tensor
    """last hidden state of its last token"""
    next_position: int
    """position of the first token of an answer; not P where an image takes fewer positions than tokens"""
    cache_layers: Sequence[object]
    """the layers of transformers' cache afterwards; those with a recurrent state hold it"""


class PlainSteps(Protocol):
    """Answers in the making on the plain path, the same number in each step."""

    def first(self) -> Tensor:
        """Logits of the first tokens, fp32 [K, V]."""

    def next(self, tokens_K: Tensor) -> Tensor:
        """Feed each row a token: logits of the tokens behind it, fp32 [K, V]."""


class TextSide(NamedTuple):
    """What is known of a checkpoint's tokenizer and processor without its weights."""

    vocabulary: str
    """see VisionLanguageModel"""
    markers: tuple[str, ...]
    """see VisionLanguageModel"""
    image_processor: str | None = None
    """class that makes pixels, where the installed libraries choose it"""
    unused_kwargs: tuple[str, ...] = ()
    """names of --chat_template_kwargs that the checkpoint's template does not read"""
    control_tokens: tuple[str, ...] = ()
    """texts that a trainer's tokenizer would read as tokens of the prompt's format"""
    text: Callable[[list[int]], str] | None = None
    """see VisionLanguageModel; None: ids become text by a loaded model alone"""
    read_answer: Callable[[Conversation, list[int]], ReadAnswer] | None = None
    """see VisionLanguageModel; None: by `text`, of a family whose prompts open no thought"""
    thought_marks: tuple[Marks, ...] = KNOWN
    """what stands around thoughts in the texts of its answers, its own marks first"""
    word_ids: Callable[[Sequence[str]], list[int]] | None = None
    """see VisionLanguageModel; None: known of a loaded model alone"""


class CacheSizes(NamedTuple):
    """Numbers that a model's cache keeps, all layers."""

    per_token: int
    per_answer: int = 0
    """recurrent states, whatever the length"""
    per_prompt: int = 0
    """keys and values of the states of an image, in layers that look at these alone"""


class Description(NamedTuple):
    """What `validate` tells of a checkpoint."""

    kind: str
    """the model's type and the kinds of its layers"""
    sizes: CacheSizes
    max_positions: int
    """most tokens of prompt and answer together, on any path"""
    why_plain: str | None = None
    """why it would run on the plain path; None: nothing speaks against sharing prompts, which a run then checks"""
    most_shared: int | None = None
    """tokens of prompt and answer up to which prompts are shared; None: as many as the model takes"""


class VisionLanguageModel(Protocol):
    """One loaded checkpoint."""

    family: str
    decoder: nn.Module
    """transformers' decoder without a head, its attention dispatched by attention.NAME"""
    vision: nn.Module
    """the vision tower, which a prompt calls once"""
    attention_layers: Mapping[nn.Module, int]
    """the decoder's modules that attend, numbered"""
    layers: Sequence[LayerKind]
    """by that number"""
    cache_layers: Sequence[object]
    """layers of transformers' cache as a prompt leaves them, of which the kinds count"""
    head: Head
    device: torch.device
    dtype: torch.dtype
    eos_token_ids: tuple[int, ...]
    banned_token_ids: tuple[int, ...]
    """never sampled: they stand for images"""
    markers: tuple[str, ...]
    """texts of the prompt format: an answer that contains one never ranks"""
    max_positions: int
    """context length: most tokens of prompt and answer together, on the path that the model is on"""
    samples_other_pixels: bool
    """`crop` of a prompt decides which part of a picture the model sees"""
    vocabulary: str
    """fingerprint of the tokenizer: models whose fingerprints are equal can exchange token ids"""
    is_split: bool
    """the weights are split over ranks: all make each call together, and one that fails leaves the others waiting"""
    num_ids: int
    """ids from 0 to below it have an embedding"""
    has_plain_path: bool
    """whether it can run on the plain path, by `plain_steps`, which others lack"""
    packs_prompts: bool
    """whether several prompts can run in one pass of the decoder, by `run_prompts`, which others lack"""
    answers_in_rows: bool
    """answers cannot be packed into one row: a layer keeps a state, or counts places within the pass"""
    max_plain_positions: int
    """max_positions on the plain path; of a model that has one"""
    reads_ahead: bool
    """a prompt's tokens look at those behind them, so that no prompt is the beginning of another"""
    why_plain: str | None
    """why the model runs on the plain path, whole rows; None: answers share the prompt's keys and values"""
    is_settled: bool
    """whether `why_plain` was held against a real prompt; a native family needs no such check"""

    def prompt(self, conversation: Conversation, images: Sequence[Image], crop: bool, max_megapixels: float) -> Prompt:
        """Everything up to the start of the answer. `crop` selects the preprocessing of scoring, not of sampling.

        Raises images.BadImage where a padded or resized image would exceed max_megapixels, and BadRow for a
        conversation that the family cannot hold.
        """

    def prompts(
        self, conversations: Sequence[Conversation], images: Sequence[Image], crop: bool, max_megapixels: float
    ) -> list[Prompt]:
        """The prompt of each of several conversations about the same images, whose pixels are computed once.

        Raises what `prompt` raises, for any of them.
        """

    def prompt_without_images(self, conversation: Conversation) -> Prompt:
        """The same prompt, as if the conversation had no images: everything else in it stays.

        Raises BadRow where the model cannot run without one, and for a conversation that the family cannot hold.
        """

    def shared_prompt(
        self, conversations: Sequence[Conversation], images: Sequence[Image], max_megapixels: float
    ) -> tuple[Prompt, list[list[int]]]:
        """What conversations about the same images have in common, as a prompt, and the ids behind it of each.

        The pixels are those of scoring. Raises UserError where they differ up to the last image, or where the model
        lets what comes later change what stands before it; and what `prompt` raises.
        """

    def encode_answer(self, conversation: Conversation, answer: str) -> list[int]:
        """An answer's ids behind that prompt, as in training: no special token parsed from the text, EOS at the end.

        A thought in the text is written by the model's own marks.
        """

    def text(self, token_ids: list[int]) -> str:
        """Decoded, special tokens skipped, stripped."""

    def read_answer(self, conversation: Conversation, token_ids: list[int]) -> ReadAnswer:
        """The final answer of an answer's ids behind that prompt, and the thought before it."""

    def encoded(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """The prompts of a pass in their order, for run_prompt, with images run through the vision tower beforehand.

        Those of several prompts together, where tower and device gain by it; each call is made when its first prompt
        is taken.
        """

    def run_prompt(self, prompt: Prompt) -> PromptEnd:
        """The forward pass of a prompt, vision tower included."""

    def run_prompts(self, prompts: Sequence[Prompt], num_rows: int) -> list[PromptEnd]:
        """The same of several prompts in one row of the decoder, which zeros fill up to `num_rows`; each image alone.

        The layout in force keeps them apart. Only where it `packs_prompts`.
        """

    def run_answers(self, ids_KT: Tensor, positions_KT: Tensor, cache: Cache) -> Tensor:
        """Last hidden states [K, T, D] of tokens of answers; the layout in force does attention."""

    def plain_logits(self, prompt: Prompt, ids: list[int]) -> Tensor:
        """fp32 [T, V]: the logits that predict each token of an answer, by one forward of the whole row."""

    def plain_steps(self, prompt: Prompt, num_rows: int) -> PlainSteps:
        """Rows of answers by the model's own decoding, a step's logits at a time; only where `has_plain_path`."""

    def plain_end(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Last hidden state [D] of a prompt's last token, and fp32 logits [V] behind it, by the model's own forward."""

    def word_ids(self, words: Sequence[str]) -> list[int]:
        """Ids of the tokens that are one of these words, with or without a space before it; sorted."""

    def find_layers(self) -> None:
        """Complete what only a call can tell of the layers; of a split model, on all ranks at the same time."""

    def whole_modules(self) -> list[tuple[nn.Module, str]]:
        """(owner, name) of modules inside decoder and vision tower that stay whole where the model is split."""

    def idle_decode(self) -> None:
        """A call of the decoder whose result is not needed: a rank without work takes part in others' calls."""

    def idle_encode(self) -> None:
        """A call of the vision tower whose result is not needed."""


class ModelFamily(Protocol):
    """The class that a line of registry.FAMILIES names; its instances are VisionLanguageModels."""

    takes_chat_settings: bool
    """whether its prompts come from a chat template, so that --chat_template has a meaning"""

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        split: Split | None = None,
        chat: ChatSettings = NO_CHAT_SETTINGS,
    ) -> VisionLanguageModel:
        """Read a checkpoint folder. checkpoint.Blueprint places the weights: whole, or as `split` divides them.

        Raises ModelError naming what is missing, unexpected or contradictory.
        """

    @classmethod
    def check(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> None:
        """Raise ModelError for what `load` would refuse, by the headers of the weight files alone."""

    @classmethod
    def text_side(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> TextSide:
        """What a checkpoint's tokenizer and processor are."""

    @classmethod
    def prompt_maker(cls, folder: Path, chat: ChatSettings = NO_CHAT_SETTINGS) -> PromptMaker:
        """What makes prompts for another engine. Raises ModelError for a checkpoint that no such engine reads."""

    @staticmethod
    def cache_sizes(folder: Path) -> CacheSizes:
        """What the cache keeps of a token and of an answer."""

    @classmethod
    def describe(cls, folder: Path) -> Description:
        """What a person should know of a checkpoint before its weights are read."""

    @classmethod
    def check_split(cls, folder: Path) -> None:
        """Raise ModelError where the model cannot be split over ranks."""

    @staticmethod
    def folders(folder: Path) -> list[Path]:
        """The folders that a checkpoint is read from: its own first, then one for each part that lies elsewhere."""
