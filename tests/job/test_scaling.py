"""How much time many ranks lose to waiting: the engine's order of units, on a virtual clock."""

import heapq

import numpy as np
import pytest

from data_engine.stages import RunStages
from data_engine.store.units import workable

STAGES = tuple(RunStages().by_name)


def lost_to_waiting(num_ranks: int, num_units: int, stages: tuple[str, ...], seed: int = 0) -> float:
    """Share of all ranks' time, until the last unit is there, in which they have none.

    Each rank asks `workable` whenever it is free, as the engine does where a unit takes some seconds, and takes the
    first that nobody holds. Unit times are drawn: 8 questions each, log-normal as the lengths of answers are, so that
    units differ by a fifth or so. Rank 0 takes 3 times as long for everything.
    """
    seconds = np.random.default_rng(seed).lognormal(0, 0.57, (len(stages), num_units, 8)).mean(2)
    done = {stage: set() for stage in (STAGES[0], *stages)}
    held, busy, clock = set(), 0.0, 0.0
    idle, events = list(range(num_ranks)), []
    while any(len(done[stage]) < num_units for stage in stages):
        # Ranks look again when a unit is published; the fast ones do not come first.
        found = workable(stages, range(num_units), done)
        while idle and (task := next((one for one in found if one not in held), None)):
            rank = idle.pop(0)
            stage, unit = task
            takes = seconds[stages.index(stage), unit] * (3 if rank == 0 else 1)
            held.add(task)
            busy += takes
            heapq.heappush(events, (clock + takes, rank, task))
        clock, rank, (stage, unit) = heapq.heappop(events)
        done[stage].add(unit)
        idle.append(rank)
    return 1 - busy / (num_ranks * clock)


def test_the_clock_is_right_by_hand():
    """Two ranks, one unit: the slow one takes it, for 3 times its time, while the other waits: half is lost."""
    assert lost_to_waiting(2, 1, STAGES[:1]) == pytest.approx(0.5)
    assert lost_to_waiting(1, 7, STAGES) == pytest.approx(0)


def test_64_ranks_lose_at_most_a_twentieth_of_4000_units_to_waiting(capsys):
    """Of one stage alone, which is the hard case: more stages are more units."""
    loss = lost_to_waiting(64, 4000, STAGES[:1])
    tell(capsys, 4000, STAGES[:1], loss)
    assert loss <= 0.05


@pytest.mark.parametrize("stages", [STAGES[:1], STAGES], ids=["sampling", "all stages"])
def test_the_more_units_the_less_is_lost(capsys, stages):
    """A rank has 5 units of 300: what the last ones leave idle shows."""
    losses = {units: lost_to_waiting(64, units, stages) for units in (300, 1000)}
    for units, loss in losses.items():
        tell(capsys, units, stages, loss)
    assert losses[300] > losses[1000] > 0


def tell(capsys, units: int, stages: tuple[str, ...], loss: float) -> None:
    with capsys.disabled():
        print(
            f"\n64 ranks, one 3 times slower, {units} units, {len(stages)} stage(s): {loss:.1%} lost to waiting", end=""
        )
