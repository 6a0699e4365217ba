"""Which pairs the gallery shows: both ends of the margins and random ones between, drawn by a fixed seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_engine.reporting.pair_numbers import PairNumbers
from data_engine.seeds import seed_for

NUM_PAIRS = 2000
# Of those, at least so many that a filter dropped, where there are.
NUM_DROPPED = 400
# A quarter of the kept ones is of the largest margins, a quarter of the smallest.
END_SHARE = 4
# From here on random pairs are drawn in runs of so many that follow each other in the file, since each run reads a
# part of the dataset, pictures included.
LARGE, RUN_LENGTH = 20_000, 20
SEED = 0


@dataclass
class Choice:
    """Rows of a file of pairs, those that matter most first, and in words how they were chosen."""

    rows: np.ndarray
    told: list[str] = field(default_factory=list)


def choose(numbers: PairNumbers, limit: int = NUM_PAIRS) -> Choice:
    """At most `limit` candidate pairs: all where they are few, else kept ones and some of what each filter dropped."""
    kept, dropped = numbers.kept, {name: numbers.rows_of(name) for name in numbers.dropped_by}
    num_dropped = sum(map(len, dropped.values()))
    # What the kept ones leave free is for dropped ones, and the other way round.
    room = min(num_dropped, max(min(NUM_DROPPED, limit // 5), limit - len(kept)))
    margins = numbers.columns["margin"]
    ends, between = spread(kept, margins, limit - room, "kept")
    told = [told_of("kept", len(kept), ends, between)] if len(kept) else []
    shares = dict(zip(dropped, _even_shares([len(rows) for rows in dropped.values()], room), strict=True))
    parts = [ends]
    for name, rows in dropped.items():
        drawn = draw(rows, shares[name], name)
        parts.append(drawn)
        told.append(_told_dropped(name, len(drawn), len(rows)))
    # Random kept ones are the first to go where the page would be too large.
    return Choice(np.concatenate([*parts, between]).astype(np.int64), told)


def spread(rows: np.ndarray, margins: np.ndarray, number: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the largest and of the smallest margins, random ones between), `number` in all; none is in both."""
    if len(rows) <= number:
        return rows, rows[:0]
    order = rows[np.argsort(-margins[rows], kind="stable")]
    size = number // END_SHARE
    ends = np.concatenate([order[:size], order[len(order) - size :]])
    middle = np.sort(order[size : len(order) - size])
    return ends, draw(middle, number - 2 * size, name)


def draw(rows: np.ndarray, number: int, name: str) -> np.ndarray:
    """`number` of the rows, in rising order, the same at each call; of many rows, runs of neighbours."""
    if len(rows) <= number:
        return rows
    random = np.random.default_rng(seed_for(SEED, "report", name))
    if len(rows) < LARGE:
        return rows[np.sort(random.choice(len(rows), number, replace=False))]
    # Blocks of equal length from the start of `rows`; each pair is as likely as any other but the last few.
    num_blocks = -(-number // RUN_LENGTH)
    starts = random.choice(len(rows) // RUN_LENGTH, num_blocks, replace=False) * RUN_LENGTH
    places = (starts[:, None] + np.arange(RUN_LENGTH)).ravel()[:number]
    return rows[np.sort(places)]


def _even_shares(sizes: Sequence[int], room: int) -> list[int]:
    """How many of each size are taken: as evenly as the sizes allow, `room` in all, or all that there are."""
    shares = [0] * len(sizes)
    for at in sorted(range(len(sizes)), key=lambda at: sizes[at]):
        left = sum(1 for other in range(len(sizes)) if (sizes[other], other) >= (sizes[at], at))
        shares[at] = min(sizes[at], (room - sum(shares)) // left)
    return shares


def told_of(name: str, size: int, ends: np.ndarray, between: np.ndarray) -> str:
    """How the pairs of a group of `size` were chosen, in words."""
    if len(ends) + len(between) >= size:
        return f"the one pair that is {name}" if size == 1 else f"all {size:,} pairs that are {name}"
    half = len(ends) // 2
    runs = f", in runs of {RUN_LENGTH} neighbours" if size - len(ends) >= LARGE else ""
    return (
        f"of {size:,} pairs that are {name} the {half:,} of the largest margins, the {half:,} of the smallest, and "
        f"{len(between):,} drawn at random between them{runs}"
    )


def _told_dropped(name: str, number: int, size: int) -> str:
    if number == size:
        return f"the one dropped by {name}" if size == 1 else f"all {size:,} dropped by {name}"
    runs = f" in runs of {RUN_LENGTH} neighbours" if size >= LARGE else ""
    return f"{number:,} of {size:,} dropped by {name}, drawn at random{runs}"
