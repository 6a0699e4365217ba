"""Lock-step: what lets ranks with different work share a model that is split over them by DeepSpeed ZeRO-3.

Under ZeRO-3 a layer's weights are gathered from all ranks whenever it runs, so that every rank must make the same calls
in the same order, whatever work it has. Before each call the ranks agree on one (a single integer, over gloo); a rank
that wants another, or has nothing to do, makes a dummy call of the agreed kind. No step counts are fixed beforehand, so
that units of any length, and ranks without a unit, need no special case.

No run uses it yet: loading a split model is still missing.
"""

import datetime
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

# What a rank can wish for; the largest wish of all is what happens. Encoding an image comes before decoding, since the
# rank that asks for it would otherwise wait until no other rank decodes.
FINISHED, IDLE, DECODE, ENCODE, STOP = range(5)
# A rank that has not come to the agreement for this long is lost: the others stop.
PATIENCE = datetime.timedelta(seconds=60)


class RankLost(RuntimeError):
    """A rank died or hangs; the others cannot go on without its share of the weights."""


class LockStep:
    """The agreement of all ranks on the next call. `stop_wanted` tells whether this rank was asked to stop."""

    def __init__(self, stop_wanted: Callable[[], bool], on_stop: type[BaseException]) -> None:
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._stop_wanted, self._on_stop = stop_wanted, on_stop
        self._dummies: dict[int, Callable[[], object]] = {}

    def register(self, kind: int, dummy: Callable[[], object]) -> None:
        """What a rank does that takes part in a call of `kind` without needing its result."""
        self._dummies[kind] = dummy

    def call(self, kind: int, real: Callable[[], Tensor]) -> Tensor:
        """Make a call together with all ranks, after those that the others want first."""
        while (agreed := self._agree(kind)) != kind:
            self._dummies[agreed]()
        return real()

    def rest(self, wish: int) -> int:
        """Take part in one call of the others, wishing IDLE or FINISHED; what was agreed."""
        agreed = self._agree(wish)
        if agreed in self._dummies:
            self._dummies[agreed]()
        return agreed

    def _agree(self, wish: int) -> int:
        mine = torch.tensor([STOP if self._stop_wanted() else wish])
        try:
            dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            raise RankLost(f"a rank died or hangs, the model cannot be run without it: {error}") from error
        if int(mine) == STOP:
            raise self._on_stop
        return int(mine)
