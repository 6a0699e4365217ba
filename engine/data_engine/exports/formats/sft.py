"""What TRL's SFTTrainer reads: the best answer of each question."""

from collections.abc import Iterator
from pathlib import Path

from data_engine.exports.cleaned import Cleaned
from data_engine.exports.formats.best import best_of_each
from data_engine.exports.formats.trl import MESSAGES, asked, said, schema_of
from data_engine.exports.parquet_files import write_files
from data_engine.exports.shuffle import Key, shuffled


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write folder/train*.parquet, a row a question that has an answer which can be ranked, shuffled by the seed."""
    schema = schema_of(cleaned.source, [("completion", MESSAGES)])
    rows = shuffled(_rows(cleaned), schema, cleaned.source, scratch)
    write_files(folder, "train", rows, schema)
    return len(rows)


def _rows(cleaned: Cleaned) -> Iterator[tuple[Key, dict]]:
    for key, question, answer in best_of_each(cleaned):
        yield key, {**asked(question), "completion": said(answer)}
