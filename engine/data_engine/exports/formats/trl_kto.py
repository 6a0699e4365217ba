"""What TRL's KTOTrainer reads: a conversation, one answer to it, and whether it is a good one."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_engine.exports.cleaned import Cleaned
from data_engine.exports.formats.trl import MESSAGES, asked, said, schema_of
from data_engine.exports.formats.turns import labelled_answers
from data_engine.exports.parquet_files import write_files
from data_engine.exports.shuffle import Key, shuffled


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write folder/train*.parquet, a row an answer, shuffled by the seed; answers to one question do not follow
    each other, since the trainer makes its estimate of a row from the answer of a neighbour.
    """
    schema = schema_of(cleaned.source, [("completion", MESSAGES), ("label", pa.bool_())])
    rows = shuffled(_rows(cleaned), schema, cleaned.source, scratch, keep_apart=True)
    write_files(folder, "train", rows, schema)
    return len(rows)


def _rows(cleaned: Cleaned) -> Iterator[tuple[Key, dict]]:
    for group in cleaned.pairs():
        for key, text, label in labelled_answers(cleaned, group):
            yield key, {**asked(group.question), "completion": said(text), "label": label}
