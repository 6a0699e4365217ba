"""The numbers of a file of pairs, as arrays: no text is read, so that a million pairs fit in memory."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine import schemas

WORDS = ("chosen_words", "rejected_words")
SIDES = ("chosen", "rejected")
KEPT = "kept"
# Rewards that are not shown.
NOT_SHOWN = ("implicit_min", "implicit_last")


@dataclass(frozen=True)
class PairNumbers:
    """Every candidate pair of a file, in its order."""

    path: Path
    status: np.ndarray
    """int32 [pairs]: the place of its status in `statuses`"""
    statuses: list[str]
    columns: dict[str, np.ndarray]
    """float64 or int32 [pairs] by the name of the column; a null reward is NaN"""

    @classmethod
    def read(cls, path: Path) -> "PairNumbers":
        """Read all columns of numbers but those of rewards that are not shown."""
        left_out = {f"{side}_{name}" for side in SIDES for name in NOT_SHOWN}
        schema = pq.read_schema(path)
        floats = [field.name for field in schema if pa.types.is_floating(field.type) and field.name not in left_out]
        names = [*floats, *WORDS]
        table = pq.read_table(path, columns=[*names, "status"], read_dictionary=["status"], partitioning=None)
        status = table["status"].combine_chunks()
        if isinstance(status, pa.ChunkedArray):
            status = pa.concat_arrays(status.chunks) if status.num_chunks else pa.array([], pa.string())
        status = status if pa.types.is_dictionary(status.type) else status.dictionary_encode()
        codes = status.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        return cls(path, codes, status.dictionary.to_pylist(), {name: table[name].to_numpy() for name in names})

    def __len__(self) -> int:
        return len(self.status)

    @property
    def kept(self) -> np.ndarray:
        """Rows of the kept pairs."""
        return self.rows_of(KEPT)

    def rows_of(self, status: str) -> np.ndarray:
        """Rows of the pairs with a status."""
        if status not in self.statuses:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.status == self.statuses.index(status))

    @property
    def dropped_by(self) -> list[str]:
        """The filters that dropped a pair, by name."""
        return sorted(name for name in self.statuses if name != KEPT)

    def difference(self, reward: str) -> np.ndarray:
        """float64 [pairs]: the chosen answer's reward less the rejected one's."""
        # Rewards may be infinite, and differences of huge ones too.
        with np.errstate(invalid="ignore", over="ignore"):
            return self.columns[f"chosen_{reward}"] - self.columns[f"rejected_{reward}"]

    @property
    def word_difference(self) -> np.ndarray:
        """int64 [pairs]: words of the chosen answer less those of the rejected one."""
        chosen, rejected = (self.columns[name].astype(np.int64) for name in WORDS)
        return chosen - rejected

    def rewards(self) -> list[str]:
        """The rewards that are shown: those that every kept pair has."""
        rows = self.kept
        names = [name.removeprefix("chosen_") for name in self.columns if name.startswith("chosen_")]
        return [
            name
            for name in names
            if f"chosen_{name}" not in WORDS
            and all(np.isfinite(self.columns[f"{side}_{name}"][rows]).all() for side in SIDES)
        ]


def metadata_of(path: Path, *names: str) -> dict:
    """What a file of pairs says of its pairing by these names, as far as it does: see pipeline/export.read_metadata."""
    found = pq.read_schema(path).metadata or {}
    return {name: json.loads(found[name.encode()]) for name in names if name.encode() in found}


def ranking_rewards(path: Path) -> list[str]:
    """What the rewards that rank are called in the table, by the file's own metadata."""
    settings = metadata_of(path, "settings").get("settings", {})
    named = settings.get("rank_by", "implicit.sum,implicit.avg")
    return [schemas.reward_name(name) for name in named.split(",")]


def read_rows(path: Path, rows: np.ndarray) -> list[dict]:
    """Some rows of a parquet file, in the order asked for, with one row group in memory at a time."""
    found, first = {}, 0
    wanted = np.unique(np.asarray(rows, np.int64))
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            own = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, first + num_rows)]
            if len(own):
                table = file.read_row_group(group).take(pa.array(own - first))
                found.update(zip(own.tolist(), table.to_pylist(), strict=True))
            first += num_rows
    return [found[int(row)] for row in rows]
