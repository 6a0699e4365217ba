"""The dataset folder: kept pairs and the questions they came from in, parquet files that a trainer loads out.

The rows are shuffled on disk: pass 1 reads the questions in their order and deals each pair, with its image, into a
bucket; pass 2 sorts one bucket after the other. A pair's place is drawn from the seed and the pair alone, and the
buckets are ranges of places, so that neither their number nor the units show in the result. Of each pair, its place is
held in memory, and a row group at a time of the rest.
"""

import contextlib
import itertools
import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine import schemas
from data_engine.questions.dataset import Question, Questions
from data_engine.seeds import seed_for
from data_engine.store.folders import swap_in

ROW_GROUP_ROWS = 100
ROW_GROUP_BYTES = 64 * 2**20
FILE_BYTES = 500 * 10**6
BUCKET_PAIRS = 512
MAX_BUCKETS = 256
PLACES = 2**63

log = logging.getLogger(__name__)


class Rows(Protocol):
    """Rows that are read one after the other, and whose number is known."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Mapping]: ...


@dataclass(frozen=True)
class Written:
    """What came of an export."""

    rows: int
    without_source: frozenset
    """idx of kept pairs that were left out because their image or question can no longer be read"""


def write_dataset(
    work_dir: Path, scratch: Path, kept: Rows, questions: Questions, units: list[range], seed: int
) -> Written:
    """Write `kept` (rows of records.pairs, in the order of the questions) as work_dir/dataset, all of it or none.

    `scratch` is an empty folder on the same file system.
    """
    schema = schemas.dpo_dataset(questions.idx_type, questions.optional_columns)
    buckets = scratch / "buckets"
    buckets.mkdir()
    places, without_source = _deal(buckets, kept, questions, units, schema, seed)
    num_rows = sum(map(len, places))
    new = scratch / "dataset"
    new.mkdir()
    _write_files(new, _row_groups(_shuffled(buckets, places), schema), schema)
    if not num_rows:
        log.warning(
            "no pair is left: %s is written as an empty file, which dataset loaders refuse", work_dir / "dataset"
        )
    swap_in(new, work_dir / "dataset", scratch / "old")
    return Written(num_rows, frozenset(without_source))


def _sources(
    kept: Iterable[Mapping], questions: Questions, units: list[range]
) -> Iterator[tuple[Question, list[Mapping]]]:
    """Each question that has a kept pair, with its pairs; a unit without one is not read."""
    groups = ((idx, list(pairs)) for idx, pairs in itertools.groupby(kept, key=itemgetter("idx")))
    group = next(groups, None)
    for unit in units:
        if group is None or group[0] not in set(questions.idx[unit.start : unit.stop]):
            continue
        for question in questions.rows(unit):
            if group is not None and question.idx == group[0]:
                yield question, group[1]
                group = next(groups, None)
    if group is not None:
        raise RuntimeError(f"idx {group[0]!r} has pairs but stands at no such place among the questions")


def _row(question: Question, pair: Mapping, optional: tuple[str, ...]) -> dict:
    return {
        "idx": pair["idx"],
        "question": schemas.without_image_marker(question.question),
        "chosen": pair["chosen"],
        "rejected": pair["rejected"],
        "image": {"bytes": question.image, "path": question.image_path},
        **{name: question.extra.get(name) for name in optional},
    }


def _deal(
    buckets: Path, kept: Rows, questions: Questions, units: list[range], schema: pa.Schema, seed: int
) -> tuple[list[array], set]:
    """Pass 1: the places of each bucket's rows, and the idx without a source. One record batch a pair, so that pass 2
    can read them in any order."""
    num_buckets = max(1, min(MAX_BUCKETS, -(-len(kept) // BUCKET_PAIRS)))
    places, without_source = [array("Q") for _ in range(num_buckets)], set()
    with contextlib.ExitStack() as stack:
        writers = []
        for bucket in range(num_buckets):
            file = stack.enter_context(pa.OSFile(str(_bucket_path(buckets, bucket)), "wb"))
            writers.append(stack.enter_context(pa.ipc.new_file(file, schema)))
        for question, pairs in _sources(kept, questions, units):
            if question.image is None or question.question is None:
                without_source.add(question.idx)
                continue
            for pair in pairs:
                place = seed_for(seed, "place", pair["idx"], pair["chosen_index"], pair["rejected_index"])
                bucket = place * num_buckets // PLACES
                row = _row(question, pair, questions.optional_columns)
                writers[bucket].write_batch(pa.RecordBatch.from_pylist([row], schema))
                places[bucket].append(place)
    return places, without_source


def _bucket_path(buckets: Path, bucket: int) -> Path:
    return buckets / f"{bucket:05d}.arrow"


def _shuffled(buckets: Path, places: list[array]) -> Iterator[pa.RecordBatch]:
    """Pass 2: batches of one row in their final order. A bucket is mapped, not read, and gone when it is used up."""
    for bucket, own in enumerate(places):
        path = _bucket_path(buckets, bucket)
        order = sorted(range(len(own)), key=own.__getitem__)
        # Mapped anew for each row group's worth: a mapping keeps in memory whatever was read through it.
        for first in range(0, len(order), ROW_GROUP_ROWS):
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file)
                for row in order[first : first + ROW_GROUP_ROWS]:
                    yield reader.get_batch(row)
        path.unlink()


def _row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of 100 rows, or of fewer heavy ones: readers hold a row group at a time.

    Their chunks stay one row each, as mapped from disk: put together, or written in one go, they would be copied.
    """
    group, group_bytes = [], 0
    for batch in batches:
        if group and (len(group) == ROW_GROUP_ROWS or group_bytes + batch.nbytes > ROW_GROUP_BYTES):
            yield pa.Table.from_batches(group, schema)
            group, group_bytes = [], 0
        group.append(batch)
        group_bytes += batch.nbytes
    if group:
        yield pa.Table.from_batches(group, schema)


def _write_files(folder: Path, groups: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write parquet files of about 500 MB, or an empty one, under their final names."""
    parts, writer, part_bytes = [], None, 0
    groups = itertools.chain([schema.empty_table()], groups)
    for group in groups:
        if writer is None or (part_bytes and part_bytes + group.nbytes > FILE_BYTES):
            if writer is not None:
                writer.close()
            parts.append(folder / f"part-{len(parts)}")
            # Images hardly repeat within a row group: a dictionary would only cost memory.
            writer, part_bytes = pq.ParquetWriter(parts[-1], schema, use_dictionary=False), 0
        if len(group):
            writer.write_table(group)
        part_bytes += group.nbytes
    writer.close()
    for number, part in enumerate(parts):
        several = f"-{number:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
        part.rename(folder / f"dpo_dataset{several}.parquet")
