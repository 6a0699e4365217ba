"""The exports of a run whose pairs are written: its work directory in, datasets of any format out."""

import functools
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
from data_engine.of_pairing import OWN, pairs_file
from data_engine.pipeline.pair_settings import Settings
from data_engine.pipeline.rewarded import ANSWER, Stored, read_rewarded, scored_rows
from data_engine.preferences.answers import why_not_ranked
from data_engine.preferences.filters import KEPT
from data_engine.preferences.pairs_metadata import metadata_of, read_funnel
from data_engine.processes.counting import counting
from data_engine.questions.dataset import Questions
from data_engine.reporting.picture import picture
from data_engine.stages import RunStages
from data_engine.store.made_from import read_unit
from data_engine.store.units import split_units

ANSWER_COLUMNS = (*ANSWER, "token_ids", "finish_reason")


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
    """run.json, as of_pairing makes it of the file"""
    questions: Questions
    config: RunConfig
    """of run.json, with the dataset where it is now"""
    name: str = OWN
    """of the pairing"""

    @property
    def pairs(self) -> Path:
        """The file of pairs."""
        return pairs_file(self.work_dir, self.name)

    @functools.cached_property
    def stages(self) -> RunStages:
        """The stages of the run."""
        return RunStages.of(self.run_file["config"])

    @functools.cached_property
    def metadata(self) -> dict[str, dict]:
        """What the file of pairs says of its pairing: see read_metadata."""
        return read_metadata(self.work_dir, self.name)

    def source(self) -> ExportSource:
        """What exports are made from."""
        self._require_same_rewards()
        trained, settings = self.trained, self.settings
        # A run of before has no control tokens in run.json; those of its markers that stand alone are some of them.
        alone = [marker for marker in trained.get("markers", ()) if marker.strip() == marker]
        return ExportSource(
            KeptRows(self.pairs), self.questions, self._unit_ranges, self.work_dir,
            settings.seed, self.config.exif, tuple(trained.get("control_tokens", alone)), trained.get("model_type"),
            _Answers(self), self._table, trained, self.stored.rewards, settings.names,
        )  # fmt: skip

    @functools.cached_property
    def settings(self) -> Settings:
        """The settings of the pairing."""
        return Settings.from_json(self.metadata["settings"])

    @property
    def alpha(self) -> float:
        """What each word of an answer took off its rewards in the rankings; the one that was found, for auto."""
        return float(self.metadata.get("length_alpha", self.settings.length_alpha or 0.0))

    @functools.cached_property
    def stored(self) -> Stored:
        """The answers of the run."""
        ranges, idx = self._unit_ranges, self.questions.idx
        return Stored(
            self.work_dir, len(ranges), self.questions.idx_type, self.run_file["bound"],
            tuple(self.trained.get("markers", ())),
            self.metadata["same_tokenizer"], self.stages,
            lambda unit: idx[ranges[unit].start : ranges[unit].stop],
        )  # fmt: skip

    @functools.cached_property
    def _unit_ranges(self) -> list[range]:
        return split_units(len(self.questions), self.run_file["units"]["unit_size"])

    def card(self, name: str, written: Written, licence: str | None = None) -> dict[str, bytes]:
        """The files that a person reads beside an export: its README.md, and the picture in it."""
        funnel = read_funnel(self.work_dir, self.name)
        shown = picture(self.pairs, funnel)
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

    def _require_same_rewards(self) -> None:
        """Raise UserError where rewards were computed anew, by another rule say, since the pairs were made of them."""
        then, now = self.metadata.get("bound", {}), self.run_file["bound"]
        changed = sorted(name for name, value in then.items() if now.get(name) != value)
        if changed:
            raise UserError(
                f'the pairs "{self.name}" of "{self.work_dir}" were made of other rewards: {", ".join(changed)} has '
                f"changed since; {_again(self.name)}"
            )

    def _table(self, stage: str, unit: int) -> pa.Table:
        return read_unit(self.work_dir, self.stages.by_name[stage], unit, self.run_file["bound"]).table


@dataclass(frozen=True)
class _Answers:
    """Rows of schemas.scored; read anew each time, and counted on stderr."""

    run: FinishedRun

    def __iter__(self) -> Iterator[dict]:
        stored, settings = self.run.stored, self.run.settings
        which, alpha = settings.answer_rule(stored.markers), self.run.alpha
        for number in counting(range(stored.num_units), stored.num_units, "units of answers"):
            unit = read_rewarded(stored, number, settings.beta, ANSWER_COLUMNS)
            rows = unit.table.to_pylist()
            for answers, (_, start, end) in zip(unit.questions(), unit.spans, strict=True):
                reasons = why_not_ranked(answers, which)
                yield from scored_rows(rows[start:end], answers, reasons, settings.names, alpha)


def _again(name: str) -> str:
    """How a pairing is made again."""
    if name == OWN:
        return "pair again, by the command of the run with --continue_from_stage 2"
    return f"make it again, by data-engine pairs with --name {name}"


def read_metadata(work_dir: Path, name: str = OWN) -> dict[str, dict]:
    """What a file of pairs says of its pairing: "settings", "funnel", "same_tokenizer", "rewards", as --rewards has
    them, "bound", what these were computed from, and "length_alpha" if it was found.

    Raises UserError where it is broken, or of an earlier version of the program.
    """
    again, path = _again(name), pairs_file(work_dir, name)
    names = ("settings", "funnel", "same_tokenizer", "rewards")
    try:
        found, columns = metadata_of(path, *names, "length_alpha", "bound"), pq.read_schema(path).names
    except pa.ArrowException:
        raise UserError(f'"{path}" is broken; {again}') from None
    if not found.keys() >= set(names) or "margin" not in columns:
        raise UserError(f'the pairs of "{work_dir}" were made by an earlier version of this program; {again}')
    return found
