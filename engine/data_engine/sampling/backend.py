"""What samples answers: requests in, completions out. A back end is one file and one line of BACKENDS.

The caller pushes requests and polls. A back end takes requests from what was submitted, as it has room for them, and
from nowhere else: that it looks for work never claims any.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from data_engine.models.base import VisionLanguageModel
from data_engine.models.prompt_maker import PromptMaker
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.requests import Completion, PromptRequest
from data_engine.tables import load

# name -> "module:function", which takes BackendSettings and returns a SamplingBackend.
BACKENDS = {
    "native": "data_engine.sampling.native.backend:make",
    "plain": "data_engine.sampling.plain:make",
    "vllm": "data_engine.sampling.vllm:make",
}


@dataclass(frozen=True)
class BackendSettings:
    """What any back end is made of."""

    model: VisionLanguageModel | PromptMaker
    """loaded, or what makes its prompts, where the back end has weights of its own"""
    params: SamplingParams
    samples_per_prompt: int
    """the most answers that a request asks for"""
    num_rows: int
    """answers drawn at a time"""
    num_slots: int
    """prompts kept at a time"""
    split: bool = False
    """the model is split over ranks, which make each call of it together"""
    num_pages: int = 0
    """of prompts and answers, where caches are paged; 0: as many as rows and slots ask for"""
    require_fast: bool = False
    """an error where a GPU would draw answers without the kernels, instead of a warning"""
    options: Mapping[str, object] = field(default_factory=dict)
    """of this back end alone"""


class SamplingBackend(Protocol):
    """Draws the answers of requests, and ends each: at one of the model's eos_token_ids, or at max_new_tokens."""

    @property
    def wants_more(self) -> bool:
        """Whether an answer could be begun now that nothing submitted asks for.

        No, while there is other work, where the answers depend on what is drawn beside them.
        """

    @property
    def halvings(self) -> int:
        """How often memory ran out, and half as many answers went on, in the work at hand or the last one."""

    def submit(self, requests: Iterable[PromptRequest]) -> None:
        """Take requests; the iterable is read as answers can be begun."""

    def poll(self) -> list[Completion]:
        """Work until an answer has ended, or until there is room for more than was submitted: then nothing.

        A completion's `request` counts all requests that were ever submitted, in their order, from 0.
        """

    def close(self) -> None:
        """Drop what is not finished, and free memory and processes of the back end's own."""


def make_backend(name: str, settings: BackendSettings) -> SamplingBackend:
    """The back end of that name, imported on first use."""
    return load(BACKENDS[name])(settings)
