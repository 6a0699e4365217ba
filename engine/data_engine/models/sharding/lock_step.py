"""Lock-step: what lets ranks with different work share a model that is split over them.

A split layer's weights are gathered from all ranks whenever it runs, so that every rank must make the same calls in the
same order, whatever work it has. Before each call the ranks agree on one (a single integer, over gloo); a rank that
wants another, or has nothing to do, makes a dummy call of the agreed kind. No step counts are fixed beforehand, so that
units of any length, and ranks without a unit, need no special case.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

# What a rank can wish for; the largest wish of all is what happens. Encoding an image comes before decoding, since the
# rank that asks for it would otherwise wait until no other rank decodes.
FINISHED, IDLE, DECODE, ENCODE, STOP = range(5)


class LockStep:
    """The agreement of all ranks on the next call."""

    def __init__(self, must_stop: Callable[[], bool], on_stop: type[BaseException]) -> None:
        """`must_stop`: this rank cannot go on; then `on_stop` is raised in all ranks, between two calls."""
        self._group = dist.new_group(backend="gloo")
        self._must_stop, self._on_stop = must_stop, on_stop
        self._dummies: dict[int, Callable[[], object]] = {}
        self._in_dummy = False

    def register(self, kind: int, dummy: Callable[[], object]) -> None:
        """What a rank does that takes part in a call of `kind` without needing its result."""
        self._dummies[kind] = dummy

    def before(self, kind: int) -> None:
        """Stands before each call of `kind`: makes the calls that other ranks want first, and returns at its turn."""
        if self._in_dummy:
            return
        while (agreed := self._agree(kind)) != kind:
            self._dummy(agreed)

    def rest(self, wish: int) -> int:
        """Take part in one call of the others, wishing IDLE or FINISHED; what was agreed."""
        agreed = self._agree(wish)
        if agreed in self._dummies:
            self._dummy(agreed)
        return agreed

    def any(self, mine: bool) -> bool:
        """Whether it holds for any rank; all ask at the same time."""
        return self._largest(int(mine)) == 1

    def _dummy(self, kind: int) -> None:
        self._in_dummy = True
        try:
            self._dummies[kind]()
        finally:
            self._in_dummy = False

    def _agree(self, wish: int) -> int:
        agreed = self._largest(STOP if self._must_stop() else wish)
        if agreed == STOP:
            raise self._on_stop
        return agreed

    def _largest(self, mine: int) -> int:
        values = torch.tensor([mine])
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        return int(values)
