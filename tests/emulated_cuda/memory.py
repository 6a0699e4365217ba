"""What the device's memory holds, and in which order streams write and read it.

Each stream counts its launches. A storage remembers the last launch that wrote it, and the last of each stream that
read it since; a stream knows, of each other stream, the last launch that it has waited for. A launch that reads what
another stream wrote, or writes what it reads, without having waited for it is a race.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

CAPACITY = 6 << 30


class Race(AssertionError):
    """Two streams use the same memory without an order."""


@dataclass
class Block:
    """The memory of one storage."""

    alive: StorageWeakRef
    num_bytes: int
    of_device: bool = False
    """not of the host, from which it is copied"""
    written: tuple[int, int] = (0, 0)
    """stream and launch"""
    read: dict[int, int] = field(default_factory=dict)
    """of each stream, the last launch that read it since it was written"""


class Memory:
    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}
        self._new = 0

    def block(self, lying: Tensor) -> Block:
        storage = lying.untyped_storage()
        known = self._blocks.get(storage._cdata)
        if known is None or known.alive.expired():
            known = self._blocks[storage._cdata] = Block(StorageWeakRef(storage), storage.nbytes())
            self._new += 1
            if self._new % 2000 == 0:
                self._forget()
        return known

    def _forget(self) -> None:
        self._blocks = {key: one for key, one in self._blocks.items() if not one.alive.expired()}

    def allocated(self) -> int:
        self._forget()
        return sum(one.num_bytes for one in self._blocks.values() if one.of_device)


class LaunchOrder:
    """The launches of a stream, and those of others that it has waited for."""

    _made: ClassVar[list["LaunchOrder"]] = []

    def __init__(self) -> None:
        self._made.append(self)
        self.number = len(self._made)
        self.launches = 0
        self.known: dict[int, int] = {}
        """of each stream, the last launch that is over when this one goes on"""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LaunchOrder) and other.number == self.number

    def __hash__(self) -> int:
        return self.number

    @classmethod
    def all_moments(cls) -> dict[int, int]:
        return {one.number: one.launches for one in cls._made}

    def moment(self) -> dict[int, int]:
        return self.known | {self.number: self.launches}

    def after(self, moment: dict[int, int]) -> None:
        for number, launch in moment.items():
            self.known[number] = max(self.known.get(number, 0), launch)

    def launch(self, reads: Iterable[Block], writes: Iterable[Block], what: object) -> None:
        self.launches += 1
        for block in reads:
            self._require(*block.written, what)
            block.read[self.number] = self.launches
        for block in writes:
            self._require(*block.written, what)
            for number, launch in block.read.items():
                self._require(number, launch, what)
            block.written, block.read = (self.number, self.launches), {}

    def _require(self, number: int, launch: int, what: object) -> None:
        if number not in (0, self.number) and self.known.get(number, 0) < launch:
            raise Race(f"{what} on stream {self.number} does not wait for launch {launch} of stream {number}")
