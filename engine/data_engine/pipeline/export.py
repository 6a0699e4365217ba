"""The exports of a run whose pairs are written: its work directory in, datasets of any format out."""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine import exports, stages
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.exports import card
from data_engine.exports.base import ExportSource, Written
from data_engine.exports.card import Card
from data_engine.exports.usage import usage_of
from data_engine.pipeline.pair import PAIRS_FILE, read_funnel
from data_engine.pipeline.rewarded import read_stages, rewarded, with_places
from data_engine.preferences import strategies
from data_engine.preferences.filters import KEPT
from data_engine.questions.dataset import Questions
from data_engine.reporting.picture import picture
from data_engine.rewards import RewardSettings
from data_engine.stages import RunStages
from data_engine.store.made_from import read_unit
from data_engine.store.units import split_units

ANSWER_COLUMNS = ("idx", "sample_index", "answer", "token_ids", "finish_reason")


class KeptRows:
    """The kept pairs of pairs.parquet, read a row group at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        statuses = pq.read_table(path, columns=["status"])["status"]
        self._num_kept = pc.sum(pc.equal(statuses, KEPT)).as_py() or 0

    def __len__(self) -> int:
        return self._num_kept

    def __iter__(self) -> Iterator[dict]:
        with pq.ParquetFile(self._path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                yield from table.filter(pc.equal(table["status"], KEPT)).to_pylist()


@dataclass(frozen=True)
class FinishedRun:
    """A run whose pairs are written."""

    work_dir: Path
    run_file: Mapping
    """run.json"""
    questions: Questions
    config: RunConfig
    """of run.json, with the dataset where it is now"""

    @property
    def stages(self) -> RunStages:
        """Of the run."""
        return RunStages.of(self.run_file["config"])

    @property
    def metadata(self) -> dict[str, dict]:
        """What pairs.parquet says of its pairing: "settings", "funnel", "same_tokenizer"."""
        try:
            found = pq.read_schema(self.work_dir / PAIRS_FILE).metadata or {}
        except pa.ArrowException:
            raise UserError(
                f'"{self.work_dir / PAIRS_FILE}" is broken; pair again, by the command of the run with '
                "--continue_from_stage 2"
            ) from None
        names = ("settings", "funnel", "same_tokenizer")
        if any(name.encode() not in found for name in names):
            raise UserError(
                f'the pairs of "{self.work_dir}" were made by an earlier version of this program; pair again, by the '
                "command of the run with --continue_from_stage 2"
            )
        return {name: json.loads(found[name.encode()]) for name in names}

    def source(self) -> ExportSource:
        """What exports are made from."""
        trained, seed = self.trained, self.metadata["settings"]["seed"]
        # A run of before has no control tokens in run.json; those of its markers that stand alone are some of them.
        alone = [marker for marker in trained.get("markers", ()) if marker.strip() == marker]
        tokens = trained.get("control_tokens", alone)
        ranges = split_units(len(self.questions), self.run_file["units"]["unit_size"])
        return ExportSource(
            KeptRows(self.work_dir / PAIRS_FILE), self.questions, ranges, self.work_dir,
            seed, self.config.exif, tuple(tokens), trained.get("model_type"),
            _Answers(self, ranges), self._table, trained,
        )  # fmt: skip

    def card(self, name: str, written: Written, licence: str | None = None) -> dict[str, bytes]:
        """The files that a person reads beside an export: its README.md, and the picture in it."""
        funnel = read_funnel(self.work_dir)
        shown = picture(self.work_dir / PAIRS_FILE, funnel)
        usage = usage_of(name)
        text = card.text(
            Card(
                name, usage.sentence, usage.columns, usage.command, written.rows, exports.changes(written),
                self.run_file, self.metadata["settings"], funnel, licence, shown is not None,
            )
        )  # fmt: skip
        return {"README.md": text.encode()} | ({card.PICTURE: shown} if shown else {})

    def write(self, names: list[str], folder: Path, scratch: Path) -> dict[str, Written]:
        """Write exports, each as the folder of its name below `folder`, whole; see exports.export."""
        source = self.source()
        return {
            name: exports.export(name, source, folder / name, scratch, functools.partial(self.card, name))
            for name in names
        }

    @property
    def trained(self) -> Mapping:
        """What run.json says of the model to train; nothing where none was named."""
        return self.run_file["models"].get(stages.TRAINED, {})

    def _table(self, stage: str, unit: int) -> pa.Table:
        return read_unit(self.work_dir, self.stages.by_name[stage], unit, self.run_file["bound"]).table


@dataclass(frozen=True)
class _Answers:
    """Rows of schemas.scored; read anew each time."""

    run: FinishedRun
    ranges: list[range]

    def __iter__(self) -> Iterator[dict]:
        told = self.run.metadata
        settings = RewardSettings(told["settings"]["beta"], told["same_tokenizer"])
        markers = self.run.trained.get("markers", ())
        for unit, rows in enumerate(self.ranges):
            read = read_stages(self.run.work_dir, unit, self.run.run_file["bound"], self.run.stages)
            order = self.run.questions.idx[rows.start : rows.stop]
            for _, answers in rewarded(read, unit, order, settings, ANSWER_COLUMNS):
                yield from with_places(answers, *strategies.split_ranked(answers, markers))
