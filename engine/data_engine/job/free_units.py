"""Which units of its shard a rank may take next, by the files of all ranks. Imports no torch."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_engine.stages import Stage
from data_engine.store import units
from data_engine.store.absent import is_there

# Where a unit becomes free meanwhile, since its rank died say, it is seen after so long at the latest.
LOOK_AGAIN_S = 5.0


class FreeUnits:
    """The units that no rank has published. They may be claimed: the caller claims a unit before it computes it.

    A look lists the folders of the stages. In a folder of 100,000 units that takes longer than computing a small unit,
    so the result of one look is used for many units.
    """

    def __init__(self, work_dir: Path, mine: Sequence[int]) -> None:
        """`mine` are the units of the rank's shard, in their order."""
        self._work_dir, self._mine = work_dir, mine
        # By names of stages: when their folders were looked at, which stage the rank took last, and what it has not
        # come to since.
        self._looks: dict[tuple[str, ...], tuple[float, str, Iterator[tuple[str, int]]]] = {}

    def of(self, todo: Sequence[Stage]) -> Iterator[tuple[Stage, int]]:
        """Units that may be computed now: first those of the last look, then those of a new one.

        Of the last look, units of the stage that was taken last, from the place at which the call before stopped.
        """
        by_name = {stage.name: stage for stage in todo}
        names = tuple(by_name)
        looked, last, left = self._looks.get(names, (-math.inf, "", iter(())))
        is_recent = time.monotonic() - looked < LOOK_AGAIN_S
        for name, unit in left if is_recent else ():
            # Its model would be loaded for a part of what is workable by now.
            if name != last:
                break
            # Another rank may have published it since the look.
            if not self.is_published(name, unit):
                yield by_name[name], unit
        left = units.workable(names, self._mine, self._done(todo))
        looked = time.monotonic()
        for name, unit in left:
            self._looks[names] = looked, name, left
            yield by_name[name], unit

    def is_published(self, stage: str, unit: int) -> bool:
        """Whether the file of a unit is there now."""
        return is_there(units.unit_path(self._work_dir, stage, unit))

    def are_left(self, todo: Sequence[Stage]) -> bool:
        """Whether these stages have a unit to publish.

        Units that wait for a stage outside of `todo` are ignored: another shard or phase computes that one.
        """
        done, names = self._done(todo), {stage.name for stage in todo}
        for stage in todo:
            ready = set(self._mine)
            for needed in set(stage.needs) - names:
                ready &= done[needed]
            if not done[stage.name].issuperset(ready):
                return True
        return False

    def _done(self, todo: Sequence[Stage]) -> dict[str, set[int]]:
        """The published units of these stages, and of those that they need."""
        names = {name for stage in todo for name in (stage.name, *stage.needs)}
        return {name: units.published(self._work_dir, name) for name in names}
