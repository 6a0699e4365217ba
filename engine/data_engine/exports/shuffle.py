"""Kept pairs in; their rows out in a seeded random order, in bounded memory.

Two passes over a folder of buckets. Pass 1 reads the questions in their order and appends each pair's row, with its
image, to a bucket. Pass 2 sorts one bucket after the other. A pair's place is drawn from the seed and the pair alone,
and each bucket is a range of places, so the order depends neither on the number of buckets nor on the units. Memory
holds the place of each pair, and the rows of one row group.
"""

import contextlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_engine.exports.base import KeptPairs
from data_engine.questions.dataset import Question
from data_engine.seeds import seed_for

BUCKET_PAIRS = 512
MAX_BUCKETS = 256
# A place is a number below this.
NUM_PLACES = 2**63
# Rows of a bucket that are read by one memory map.
ROWS_A_MAP = 100


@dataclass(frozen=True)
class Shuffled:
    """The rows of an export on disk, one record batch each."""

    paths: list[Path]
    """a bucket each"""
    places: list[array]
    """of each bucket's rows"""
    without_source: frozenset
    not_fitting: int
    """pairs of which `row_of` makes no row"""

    def __len__(self) -> int:
        return sum(map(len, self.places))

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Batches of one row in their final order, once: each bucket is memory-mapped, and deleted when it is read."""
        for path, places in zip(self.paths, self.places, strict=True):
            order = sorted(range(len(places)), key=places.__getitem__)
            # A new map for each few rows: a map keeps in memory whatever was read through it.
            for first in range(0, len(order), ROWS_A_MAP):
                with pa.memory_map(str(path)) as file:
                    reader = pa.ipc.open_file(file)
                    for row in order[first : first + ROWS_A_MAP]:
                        yield reader.get_batch(row)
            path.unlink()


def shuffled(
    kept: KeptPairs, schema: pa.Schema, row_of: Callable[[Question, Mapping], dict | None], scratch: Path
) -> Shuffled:
    """Pass 1: one row of `schema` a pair, made by `row_of`, or None where the pair does not fit; the buckets lie in
    `scratch`.
    """
    buckets = scratch / "buckets"
    buckets.mkdir()
    num_buckets = max(1, min(MAX_BUCKETS, -(-len(kept.pairs) // BUCKET_PAIRS)))
    paths = [buckets / f"{bucket:05d}.arrow" for bucket in range(num_buckets)]
    places, without_source, not_fitting = [array("Q") for _ in paths], set(), 0
    with contextlib.ExitStack() as stack:
        # One record batch a pair, so that pass 2 can read them in any order.
        files = [stack.enter_context(pa.OSFile(str(path), "wb")) for path in paths]
        writers = [stack.enter_context(pa.ipc.new_file(file, schema)) for file in files]
        for group in kept.by_question():
            if not group.has_source:
                without_source.add(group.question.idx)
                continue
            for pair in group.pairs:
                row = row_of(group.question, pair)
                if row is None:
                    not_fitting += 1
                    continue
                place = place_of(pair, kept.seed)
                bucket = place * num_buckets // NUM_PLACES
                writers[bucket].write_batch(pa.RecordBatch.from_pylist([row], schema))
                places[bucket].append(place)
    return Shuffled(paths, places, frozenset(without_source), not_fitting)


def place_of(pair: Mapping, seed: int) -> int:
    """The number by which a pair is sorted, uniform below NUM_PLACES."""
    return seed_for(seed, "place", pair["idx"], pair["chosen_index"], pair["rejected_index"])
