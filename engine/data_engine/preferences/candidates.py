"""The candidate pairs of a pairing until their status is known: on disk, with a few bytes a pair in memory.

Pairs are added question by question. The table is then filtered, and iterates over the kept pairs.
"""

import dataclasses
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine.preferences import filters
from data_engine.preferences.filters import KEPT, PairLengths
from data_engine.preferences.strategies import Pair

NO_SOURCE = "no_source"
"""status of a pair that every filter kept, but whose image or question can no longer be read"""
STATUSES = (KEPT, *filters.FILTERS, NO_SOURCE)
# Pairs that are held in memory before they are written as a row group.
BUFFER_ROWS = 8192
PAIR_FIELDS = tuple(field.name for field in dataclasses.fields(Pair))


class LengthColumns(Sequence):
    """The PairLengths of all pairs, column by column, in 20 bytes a pair."""

    def __init__(self) -> None:
        self._idx: list[int | str] = []
        # One array a field of PairLengths; instead of idx the position in _idx.
        self._columns = [array("i") for _ in PairLengths._fields]

    def add(self, idx: int | str, candidates: Iterable[Pair]) -> None:
        """Append the pairs of one question; its idx is kept once."""
        for pair in candidates:
            values = (len(self._idx), *(getattr(pair, name) for name in PairLengths._fields[1:]))
            for column, value in zip(self._columns, values, strict=True):
                column.append(value)
        self._idx.append(idx)

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, at: int) -> PairLengths:
        question, *others = (column[at] for column in self._columns)
        return PairLengths(self._idx[question], *others)


class CandidateTable:
    """All candidate pairs, in a parquet file, and their statuses; as a collection, the rows that are kept.

    A context manager while pairs are added; the rows can be read after it ends.
    """

    def __init__(self, path: Path, schema: pa.Schema, seed: int) -> None:
        self.path, self.schema, self.seed = path, schema, seed
        self._lengths = LengthColumns()
        # Positions in STATUSES.
        self._status = bytearray()
        self._buffer: list[dict] = []

    def __enter__(self) -> "CandidateTable":
        self._writer = pq.ParquetWriter(self.path, self.schema)
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, idx: int | str, candidates: list[Pair]) -> None:
        """Add the candidate pairs of the next question, and run the filters that look at one question."""
        if not candidates:
            return
        self._status += bytes(map(STATUSES.index, filters.statuses(candidates, self.seed, filters.QUESTION_FILTERS)))
        self._lengths.add(idx, candidates)
        for pair in candidates:
            self._buffer.append({name: getattr(pair, name) for name in PAIR_FIELDS} | {"status": None})
        if len(self._buffer) >= BUFFER_ROWS:
            self._flush()

    def filter_dataset(self) -> None:
        """Run the filters that look at all pairs."""
        left = self._kept()
        pairs = filters.Selected(self._lengths, left)
        for row, status in zip(left, filters.statuses(pairs, self.seed, filters.DATASET_FILTERS), strict=True):
            self._status[row] = STATUSES.index(status)

    def drop(self, without_source: frozenset) -> None:
        """Set the status of the kept pairs of these idx to NO_SOURCE."""
        if without_source:
            for row in self._kept():
                if self._lengths[row].idx in without_source:
                    self._status[row] = STATUSES.index(NO_SOURCE)

    def tables(self) -> Iterator[pa.Table]:
        """All candidate pairs with their status, one table a row group."""
        first = 0
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                codes = self._status[first : first + len(table)]
                status = pa.array([STATUSES[code] for code in codes], pa.string())
                yield table.set_column(table.schema.get_field_index("status"), "status", status)
                first += len(table)

    def counts(self) -> Counter:
        """Status -> pairs."""
        return Counter({name: self._status.count(code) for code, name in enumerate(STATUSES)})

    def __len__(self) -> int:
        return self._status.count(STATUSES.index(KEPT))

    def __iter__(self) -> Iterator[dict]:
        for table in self.tables():
            yield from table.filter(pc.equal(table["status"], KEPT)).to_pylist()

    def _kept(self) -> array:
        kept = STATUSES.index(KEPT)
        return array("q", (row for row, status in enumerate(self._status) if status == kept))

    def _flush(self) -> None:
        if self._buffer:
            self._writer.write_table(pa.Table.from_pylist(self._buffer, self.schema))
            self._buffer = []
