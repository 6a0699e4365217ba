"""The engine's own sampling as a back end: one prefix a question, its answers as rows that are refilled as they end."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from data_engine.sampling.backend import BackendSettings
from data_engine.sampling.memory import rows_without_pages
from data_engine.sampling.native.scheduler import Decoder
from data_engine.sampling.requests import Request, Sampled
from data_engine_kernels import use_triton


def make(settings: BackendSettings) -> "NativeBackend":
    """The native back end, with paged suffixes and captured steps where the device has the kernels for them."""
    model, rows = settings.model, settings.num_rows
    # The calls of a split model are agreed on one by one, which no captured step can do.
    paged = use_triton(model.head_weight) and not settings.split
    if not paged:
        rows = rows_without_pages(rows, model.device.type)
    fused = settings.samples_per_prompt if paged else None
    return NativeBackend(Decoder(model, rows, settings.num_slots, fused), settings)


class NativeBackend:
    """Requests that wait, and the loop that draws their answers; the loop ends when all are done."""

    def __init__(self, decoder: Decoder, settings: BackendSettings) -> None:
        self._decoder, self._params = decoder, settings.params
        self._submitted: deque[Iterator[Request]] = deque()
        self._loop: Iterator[Sampled | None] | None = None
        self._paused = False
        self._num_taken = self._num_before = 0

    @property
    def wants_more(self) -> bool:
        # What ran out of memory is the last work of its loop: the next one starts with all rows again.
        room = self._loop is None or (self._paused and not self.halvings)
        return room and not self._submitted

    @property
    def halvings(self) -> int:
        return self._decoder.retries

    def submit(self, requests: Iterable[Request]) -> None:
        if self._loop and self._paused and self.halvings:
            self._loop.close()
            self._loop = None
        self._submitted.append(iter(requests))

    def poll(self) -> list[Sampled]:
        if self._loop is None:
            self._num_before = self._num_taken
            self._loop = self._decoder.stream(self, self._params, pauses=True)
        try:
            found = next(self._loop)
        except StopIteration:
            self._loop, found = None, None
        self._paused = found is None
        if found is None:
            return []
        return [replace(found, request=found.request + self._num_before)]

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        """The next request that was submitted. Asked again after the last, it looks for what was submitted since."""
        while self._submitted:
            request = next(self._submitted[0], None)
            if request is not None:
                self._num_taken += 1
                return request
            self._submitted.popleft()
        raise StopIteration
