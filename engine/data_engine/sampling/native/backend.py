"""The engine's own sampling as a back end: one prefix a question, its answers as rows that are refilled as they end.

Where the kernels are, an answer's bits are its own (paged_attention.py), so one queue goes through all units: rows that
a unit leaves idle begin the next one. In plain torch, which is faster on a CPU without idle rows, the products of an
answer depend in their last bits on what runs beside it; there, a unit begins when the one before it has ended, so that
its answers depend on the unit alone.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

from data_engine.errors import UserError
from data_engine.models.base import VisionLanguageModel
from data_engine.sampling.backend import BackendSettings
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.memory import rows_without_pages
from data_engine.sampling.native.page_allocator import pages_of
from data_engine.sampling.native.scheduler import SamplingEngine, sample
from data_engine.sampling.requests import Completion, PromptRequest, Submitted
from data_engine_kernels import use_triton

log = logging.getLogger(__name__)


def make(settings: BackendSettings) -> "NativeBackend":
    """The native back end, with paged caches and captured steps where the device has the kernels for them."""
    model, k, sizes = settings.model, settings.samples_per_prompt, (settings.num_rows, settings.num_slots)
    # The calls of a split model are agreed on one by one, which no captured step can do.
    if uses_kernels(model) and not settings.split:
        return NativeBackend(SamplingEngine(model, *sizes, k, settings.num_pages), settings)
    if not settings.split and (why := why_no_kernels(model)):
        if settings.require_fast:
            raise UserError(f"--require_fast is set, and this GPU would draw answers by plain torch: {why}")
        log.warning("this GPU draws answers by plain torch, many times slower than by the kernels: %s", why)
    sizes = rows_without_pages(*sizes, settings.num_pages, k, settings.params.max_new_tokens)
    return NativeBackend(SamplingEngine(model, *sizes), settings)


def sample_one(model: VisionLanguageModel, request: PromptRequest, params: SamplingParams) -> list[Completion]:
    """All answers of one request at a time, in their order, by the same steps as a run's."""
    k = len(request.keys)
    if model.is_split or not uses_kernels(model):
        return sample(model, [request], params, num_rows=k)
    # The prompt may be of any length.
    num_pages = pages_of(request.prompt.length) + k * pages_of(params.max_new_tokens)
    return SamplingEngine(model, k, 1, k, num_pages).sample([request], params)


def uses_kernels(model: VisionLanguageModel) -> bool:
    """Whether the device has the kernels, and they know what each layer of the model does."""
    return use_triton(model.head.weight) and not _unknown(model)


def why_no_kernels(model: VisionLanguageModel) -> str | None:
    """Why a GPU draws the model's answers without the kernels; None where it does not, and on a CPU, which has none."""
    if model.device.type != "cuda":
        return None
    return _unknown(model) if use_triton(model.head.weight) else "Triton is not installed (pip install triton)"


def _unknown(model: VisionLanguageModel) -> str | None:
    """The first layer that the kernels do not know, and what of it."""
    for number, kind in enumerate(model.layers):
        if why := kind.why_no_kernel(model.max_positions):
            return f"layer {number} {why}"
    return None


class NativeBackend:
    """The scheduler's loop, which takes its requests from those that were submitted."""

    def __init__(self, engine: SamplingEngine, settings: BackendSettings) -> None:
        self._engine, self._params = engine, settings.params
        # The loop holds this, and not the back end: no circle keeps the caches alive when the back end is dropped.
        self._submitted = Submitted()
        self._loop: Iterator[Completion | None] | None = None
        self._paused = False
        self._num_before = 0

    @property
    def wants_more(self) -> bool:
        # What ran out of memory is the last work of its loop: the next one starts with all rows again.
        beside = self._paused and self._engine.is_invariant and not self.halvings
        return not self._submitted and (self._loop is None or beside)

    @property
    def halvings(self) -> int:
        return self._engine.retries

    def submit(self, requests: Iterable[PromptRequest]) -> None:
        # What was submitted before is done: `wants_more` asks for nothing beside it.
        if self._loop and self.halvings:
            self._loop.close()
            self._loop = None
        self._submitted.add(requests)

    def poll(self) -> list[Completion]:
        if self._loop is None:
            self._num_before = self._submitted.num_taken
            self._loop = self._engine.stream(self._submitted, self._params, pauses=True)
        try:
            found = next(self._loop)
        except StopIteration:
            self._loop, found = None, None
        self._paused = found is None
        if found is None:
            return []
        return [replace(found, request=found.request + self._num_before)]

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()
        self._loop = None
