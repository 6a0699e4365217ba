"""The numbers of a file of pairs, as arrays: no text is read, so that a million pairs fit in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine import schemas, stages
from data_engine.preferences.pairs_metadata import metadata_of

WORDS = ("chosen_words", "rejected_words")
SIDES = ("chosen", "rejected")
KEPT = "kept"
# Rewards that are not shown.
NOT_SHOWN = ("implicit_min", "implicit_last")
# What ranks where nothing else is asked for.
RANK_BY = ",".join(stages.SOURCES[stages.DEFAULT].rank_by)


@dataclass(frozen=True)
class PairNumbers:
    """Every candidate pair of a file, in its order."""

    path: Path
    status: np.ndarray
    """int32 [pairs]: the place of its status in `statuses`"""
    statuses: list[str]
    columns: dict[str, np.ndarray]
    """float64 or int32 [pairs] by the name of the column; a null reward is NaN"""
    names: Mapping[str, str] = field(default_factory=dict)
    """what rewards are called, by their columns: implicit.sum, as --rank_by names it"""
    ranking: Sequence[str] = ()
    """the columns of the rewards that rank, as the file's metadata have them"""

    @classmethod
    def read(cls, path: Path) -> "PairNumbers":
        """Read all columns of numbers but those of rewards that are not shown."""
        left_out = {f"{side}_{name}" for side in SIDES for name in NOT_SHOWN}
        schema = pq.read_schema(path)
        floats = [field.name for field in schema if pa.types.is_floating(field.type) and field.name not in left_out]
        names = [*floats, *WORDS]
        # One after the other, so that no second copy of all of them is held.
        with pq.ParquetFile(path, read_dictionary=["status"], pre_buffer=False) as file:
            columns = {name: file.read([name])[name].to_numpy() for name in names}
            status = file.read(["status"])["status"].combine_chunks()
        if isinstance(status, pa.ChunkedArray):
            status = pa.concat_arrays(status.chunks) if status.num_chunks else pa.array([], pa.string())
        status = status if pa.types.is_dictionary(status.type) else status.dictionary_encode()
        codes = status.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        told = metadata_of(path, "settings", "reward_totals")
        rank_by = told.get("settings", {}).get("rank_by", RANK_BY).split(",")
        rewards = (*RANK_BY.split(","), *rank_by, *told.get("reward_totals", {}))
        return cls(
            path, codes, status.dictionary.to_pylist(), columns, {schemas.reward_name(name): name for name in rewards},
            [schemas.reward_name(name) for name in rank_by],
        )  # fmt: skip

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
        """The rewards that are shown: those of which both sides of the kept pairs have a number."""
        rows = self.kept
        names = [name.removeprefix("chosen_") for name in self.columns if name.startswith("chosen_")]
        return [
            name
            for name in names
            if f"chosen_{name}" not in WORDS
            and all(np.isfinite(self.columns[f"{side}_{name}"][rows]).any() for side in SIDES)
        ]

    def first_reward(self) -> str | None:
        """The column of the reward that tells most of the kept pairs: the first of those that rank, if it is shown."""
        shown = self.rewards()
        return next((name for name in (*self.ranking, *shown) if name in shown), None)

    def ranking_differences(self) -> dict[str, np.ndarray]:
        """`difference` of each reward that ranks, by its column."""
        return {name: self.difference(name) for name in self.ranking if f"chosen_{name}" in self.columns}

    def called(self, reward: str) -> str:
        """What a reward is called, by its column."""
        return self.names.get(reward, reward)


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
