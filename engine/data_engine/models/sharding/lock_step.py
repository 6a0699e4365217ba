"""Lock-step: ranks with different work share a model whose weights are split over them.

The weights of a split layer are gathered from all ranks whenever it runs, so every rank must make the same calls in the
same order. Before each call the ranks agree on its kind by a single integer, over gloo. A rank that needs another kind,
or has no work, makes a dummy call of the agreed kind. The number of steps is not fixed beforehand, so units of any
length and ranks without a unit need no special case.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

# What a rank requests; the largest number of all ranks is agreed on. ENCODE is larger than DECODE: a rank that needs an
# image encoded would otherwise wait until no rank decodes any more.
FINISHED, IDLE, DECODE, ENCODE, STOP = range(5)


class CallAgreement:
    """The agreement of all ranks on the kind of their next call."""

    def __init__(self, must_stop: Callable[[], bool], on_stop: type[BaseException]) -> None:
        """Where `must_stop` is true on any rank, all ranks raise `on_stop`, between two calls."""
        self._group = dist.new_group(backend="gloo")
        self._must_stop, self._on_stop = must_stop, on_stop
        self._dummies: dict[int, Callable[[], object]] = {}
        self._in_dummy = False

    def register(self, kind: int, dummy: Callable[[], object]) -> None:
        """Set the dummy call that a rank makes to take part in a call of `kind` whose result it does not need."""
        self._dummies[kind] = dummy

    def before(self, kind: int) -> None:
        """Call before each call of `kind`: makes dummy calls until `kind` is agreed on."""
        if self._in_dummy:
            return
        while (agreed := self._agree(kind)) != kind:
            self._dummy(agreed)

    def take_part(self, request: int) -> int:
        """Take part in one call of the other ranks, requesting IDLE or FINISHED. Returns what was agreed on."""
        agreed = self._agree(request)
        if agreed in self._dummies:
            self._dummy(agreed)
        return agreed

    def any(self, mine: bool) -> bool:
        """Whether it is true on any rank; all ranks must ask at the same time."""
        return self._largest(int(mine)) == 1

    def _dummy(self, kind: int) -> None:
        self._in_dummy = True
        try:
            self._dummies[kind]()
        finally:
            self._in_dummy = False

    def _agree(self, request: int) -> int:
        agreed = self._largest(STOP if self._must_stop() else request)
        if agreed == STOP:
            raise self._on_stop
        return agreed

    def _largest(self, mine: int) -> int:
        values = torch.tensor([mine])
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        return int(values)
