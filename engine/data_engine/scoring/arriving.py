"""The numbers of a pass on their way from the device: they are read after the next pass was launched."""

import torch
from torch import Tensor

from data_engine.models.device import HostCopy


class Arriving:
    """Numbers of each answer of each question of a pass; None for a question that has none."""

    def __init__(self, found: list[list[Tensor] | None]) -> None:
        """Start one copy of all of them; on the CPU they stay where they are."""
        numbers = [one for question in found if question for one in question]
        self._found, self._copy = found, None
        if any(one.is_cuda for one in numbers):
            self._copy = HostCopy(torch.cat([one.reshape(-1) for one in numbers]))
            # Not the numbers themselves, which would stay on the device until they are read.
            self._shapes = [question and [one.shape for one in question] for question in found]
            self._found = None

    def read(self) -> list[list[Tensor] | None]:
        """On the host. Waits for this pass alone, not for what was launched after it."""
        if self._copy is None:
            return self._found
        sizes = [shape.numel() for question in self._shapes if question for shape in question]
        parts = iter(self._copy.read().split(sizes))
        return [question and [next(parts).view(shape) for shape in question] for question in self._shapes]
