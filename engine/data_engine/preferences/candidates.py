"""The candidate pairs of a pairing until their status is known: on disk, with a few bytes a pair in memory.

Pairs are added question by question. The table is then filtered, and iterates over the kept pairs.
"""

import contextlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine.preferences import filters
from data_engine.preferences.filters import KEPT, PairLengths
from data_engine.preferences.strategies import Pair

NO_SOURCE = "no_source"
"""status of a pair that every filter kept, but whose image or question can no longer be read"""
STATUSES = (KEPT, *filters.FILTERS, *filters.ON_REQUEST, NO_SOURCE)
# Pairs that are held in memory before they are written as a row group.
BUFFER_ROWS = 8192
# Columns that are attributes of a Pair; the others are rewards of its two answers.
FIELDS = (
    "idx", "chosen_index", "rejected_index", "chosen", "rejected", "chosen_words", "rejected_words", "margin",
)  # fmt: skip


DEFAULT_RULE = filters.FilterRule()


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

    def __init__(self, path: Path, schema: pa.Schema, seed: int, rule: filters.FilterRule = DEFAULT_RULE) -> None:
        self.path, self.schema, self.seed = path, schema, seed
        self._filters, self._dataset_filters = filters.question_filters(rule), filters.dataset_filters(rule)
        self._columns = [(name, _getter(name)) for name in schema.names]
        self._lengths = LengthColumns()
        # Positions in STATUSES.
        self._status = bytearray()
        self._buffer: list[Pair] = []

    @property
    def filter_names(self) -> tuple[str, ...]:
        """The filters of this pairing, in the order in which they run."""
        return (*self._filters, *self._dataset_filters)

    def __enter__(self) -> "CandidateTable":
        self._writer = pq.ParquetWriter(self.path, self.schema)
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        if kind is None:
            self._flush()
            self._writer.close()
            return
        # A writer that has failed, on a full disk say, fails again: what comes out is the error that it met first.
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()

    def add(self, idx: int | str, candidates: list[Pair]) -> None:
        """Add the candidate pairs of the next question, and run the filters that look at one question."""
        if not candidates:
            return
        self._status += bytes(map(STATUSES.index, filters.statuses(candidates, self.seed, self._filters)))
        self._lengths.add(idx, candidates)
        self._buffer += candidates
        if len(self._buffer) >= BUFFER_ROWS:
            self._flush()

    def filter_dataset(self) -> None:
        """Run the filters that look at all pairs."""
        left = self._kept()
        pairs = filters.Selected(self._lengths, left)
        for row, status in zip(left, filters.statuses(pairs, self.seed, self._dataset_filters), strict=True):
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
            columns = {name: list(map(get, self._buffer)) for name, get in self._columns}
            self._writer.write_table(pa.table(columns, self.schema))
            self._buffer = []


def _getter(column: str) -> Callable[[Pair], object]:
    """How a column of schemas.pairs is read from a pair."""
    if column in FIELDS:
        return attrgetter(column)
    if column == "status":
        return lambda pair: None
    side, _, reward = column.partition("_")
    place_of = attrgetter("good" if side == "chosen" else "bad")

    def get(pair: Pair) -> float | None:
        rewards = pair.answers.rewards.get(reward)
        return None if rewards is None else rewards[place_of(pair)]

    return get
