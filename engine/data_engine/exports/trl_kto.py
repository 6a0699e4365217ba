"""What TRL's KTOTrainer reads: a conversation, one answer to it, and whether it is a good one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from data_engine.exports.cleaned import Cleaned
from data_engine.exports.parquet_files import write_files
from data_engine.exports.shuffle import Key, shuffled
from data_engine.exports.trl import MESSAGES, asked, said, schema_of

BOTH = "an answer is chosen in one pair and rejected in another"


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
        good, both = labelled(group.rows)
        if both:
            cleaned.leave_out(BOTH, both)
        for (index, text), label in good.items():
            row = {**asked(group.question), "completion": said(text), "label": label}
            yield (group.question.idx, index), row


def labelled(pairs: Sequence[Mapping]) -> tuple[dict[tuple[int, str], bool], int]:
    """(sample_index, text) -> whether it is good, of the answers in the pairs of a question; each text once.

    The second is the number of texts that the pairs call good and bad, which are not among them.
    """
    indexes: dict[str, int] = {}
    labels: dict[str, set[bool]] = {}
    for pair in pairs:
        for side, label in (("chosen", True), ("rejected", False)):
            indexes.setdefault(pair[side], pair[f"{side}_index"])
            labels.setdefault(pair[side], set()).add(label)
    told = {(indexes[text], text): True in found for text, found in labels.items() if len(found) == 1}
    return told, len(labels) - len(told)
