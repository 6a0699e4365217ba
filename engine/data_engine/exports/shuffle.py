"""The rows of an export in; the same rows out in a seeded random order, in bounded memory.

Two passes over a folder of buckets. Pass 1 appends each row, with its image, to a bucket. Pass 2 reads one bucket after
the other. A row's place is drawn from the seed and its key alone, and each bucket is a range of places, so the order
depends neither on the number of buckets nor on the units. Memory holds the place of each row, and the rows of one row
group.
"""

import contextlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_engine.exports.apart import apart
from data_engine.exports.base import ExportSource
from data_engine.processes.counting import counting
from data_engine.seeds import seed_for

BUCKET_ROWS = 512
MAX_BUCKETS = 256
# A place is a number below this.
NUM_PLACES = 2**63
# Rows that are read by one set of memory maps.
ROWS_A_MAP = 100

Key = tuple
"""What names a row among all rows of an export: the idx of its question, and numbers of its answers"""


@dataclass(frozen=True)
class Shuffled:
    """The rows of an export on disk, one record batch each."""

    paths: list[Path]
    """a bucket each"""
    order: np.ndarray
    """int32 [rows, 2]: bucket of each row, and its number there"""

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Batches of one row in their final order, once, counted on stderr: buckets are memory-mapped, and deleted when
        the rows behind theirs are read; the last ones stay.
        """
        return counting(self._batches(), len(self), "rows written")

    def _batches(self) -> Iterator[pa.RecordBatch]:
        left = np.bincount(self.order[:, 0], minlength=len(self.paths)).tolist()
        # New maps for each few rows: a map keeps in memory whatever was read through it.
        read = []
        for first in range(0, len(self.order), ROWS_A_MAP):
            # Not before: as long as a row of it is held, the disk keeps a file that has no name any more.
            for bucket in read:
                self.paths[bucket].unlink()
            with contextlib.ExitStack() as stack:
                readers = {}
                for bucket, number in self.order[first : first + ROWS_A_MAP].tolist():
                    if bucket not in readers:
                        file = stack.enter_context(pa.memory_map(str(self.paths[bucket])))
                        readers[bucket] = pa.ipc.open_file(file)
                    yield readers[bucket].get_batch(number)
                    left[bucket] -= 1
            read = [bucket for bucket in readers if not left[bucket]]


def shuffled(
    rows: Iterable[tuple[Key, dict]], schema: pa.Schema, source: ExportSource, scratch: Path, keep_apart: bool = False
) -> Shuffled:
    """Pass 1: rows of `schema` with their keys, of which no two are equal; the buckets lie in `scratch`.

    With `keep_apart`, two rows of one question never follow each other, the last and the first included, where there is
    such an order.
    """
    buckets = scratch / "buckets"
    buckets.mkdir()
    # An estimate: an export has a row a pair, an answer of a pair, or a question.
    num_rows = max(len(source.pairs), len(source.questions))
    num_buckets = max(1, min(MAX_BUCKETS, -(-num_rows // BUCKET_ROWS)))
    # The rows of a bucket lie in the file that is written, too, until the last of them is.
    source.reached.peak = 1 + 1 / num_buckets
    paths = [buckets / f"{bucket:05d}.arrow" for bucket in range(num_buckets)]
    places, owners = [array("Q") for _ in paths], [array("i") for _ in paths]
    number_of: defaultdict[int | str, int] = defaultdict(lambda: len(number_of))
    with contextlib.ExitStack() as stack:
        # One record batch a row, so that pass 2 can read them in any order.
        files = [stack.enter_context(pa.OSFile(str(path), "wb")) for path in paths]
        writers = [stack.enter_context(pa.ipc.new_file(file, schema)) for file in files]
        for key, row in rows:
            place = seed_for(source.seed, "place", *key)
            bucket = place * num_buckets // NUM_PLACES
            writers[bucket].write_batch(pa.RecordBatch.from_pylist([row], schema))
            places[bucket].append(place)
            if keep_apart:
                owners[bucket].append(number_of[key[0]])
    source.reached.needed_bytes = int(sum(path.stat().st_size for path in paths) * source.reached.peak)
    by_place = [np.argsort(np.asarray(drawn), kind="stable") for drawn in places]
    buckets_of = np.repeat(np.arange(num_buckets), [len(drawn) for drawn in places])
    order = np.column_stack([buckets_of, np.concatenate(by_place)]).astype(np.int32)
    if keep_apart:
        owner_of = [np.asarray(own)[numbers] for own, numbers in zip(owners, by_place, strict=True)]
        order = order[np.asarray(apart(array("i", np.concatenate(owner_of).tobytes())))]
    return Shuffled(paths, order)


def pair_key(pair: Mapping) -> Key:
    """The key of a pair."""
    return pair["idx"], pair["chosen_index"], pair["rejected_index"]
