"""Numbers on their way from the device, which are read after the next pass was launched."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Arriving:
    """Numbers of each answer of each question of a pass; None for a question that has none."""

    def __init__(self, found: list[list[Tensor] | None]) -> None:
        """Start one copy of all of them; on the CPU they stay where they are."""
        self._found, self._arrived = found, None
        numbers = [one for question in found if question for one in question]
        if not any(one.is_cuda for one in numbers):
            return
        together = torch.cat([one.reshape(-1) for one in numbers])
        host = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
        host.copy_(together, non_blocking=True)
        # Of the numbers' device, which need not be the current one.
        self._arrived = torch.cuda.current_stream(together.device).record_event()
        parts = iter(host.split([one.numel() for one in numbers]))
        self._found = [
            question and [part.view(one.shape) for one, part in zip(question, parts, strict=False)]
            for question in found
        ]

    def read(self) -> list[list[Tensor] | None]:
        """On the host. Waits for this pass alone, not for what was launched after it."""
        if self._arrived:
            self._arrived.synchronize()
        return self._found


def read_behind(
    launched: Iterable[tuple[T, list[list[Tensor] | None]]], device: torch.device
) -> Iterator[tuple[T, list[list[Tensor] | None]]]:
    """Each pass, whatever stands for it, with its numbers on the host; on a GPU read while the next pass runs."""
    lag, waiting = int(device.type == "cuda"), deque()
    for one, found in launched:
        waiting.append((one, Arriving(found)))
        if len(waiting) > lag:
            first, arriving = waiting.popleft()
            yield first, arriving.read()
    for one, arriving in waiting:
        yield one, arriving.read()
