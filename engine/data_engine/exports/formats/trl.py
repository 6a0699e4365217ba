"""What TRL's DPOTrainer reads: a conversation of messages and pictures, and what was answered well and badly.

The content of a message is always a list of parts. One shape for all rows is what parquet needs, and text alone could
not say where a picture stands.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from data_engine.exports.base import ExportSource
from data_engine.exports.cleaned import Cleaned
from data_engine.exports.features import with_features
from data_engine.exports.parquet_files import write_files
from data_engine.exports.shuffle import Key, pair_key, shuffled
from data_engine.questions.conversation import Message
from data_engine.questions.dataset import Question
from data_engine.schemas import IMAGE

PART = pa.struct([("type", pa.string()), ("text", pa.string())])
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(PART))]))
IMAGE_PART = {"type": "image", "text": None}


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write folder/train*.parquet, a row a pair, shuffled by the seed."""
    schema = schema_of(cleaned.source, [("chosen", MESSAGES), ("rejected", MESSAGES), ("margin", pa.float64())])
    rows = shuffled(_rows(cleaned), schema, cleaned.source, scratch)
    write_files(folder, "train", rows, schema)
    return len(rows)


def schema_of(source: ExportSource, columns: Iterable[tuple[str, pa.DataType]]) -> pa.Schema:
    """The columns of `asked` and, in their midst, those of one trainer.

    A dataset that has no pictures has no column of them: TRL takes the column alone for pictures, and then refuses
    models of text.
    """
    images = [("images", pa.list_(IMAGE))] if source.questions.has_images else []
    return with_features(pa.schema([("prompt", MESSAGES), *columns, *images, ("idx", source.questions.idx_type)]))


def asked(question: Question) -> dict:
    """The columns of a question: all that comes before the answer, and its pictures, as they stand there."""
    return {
        "idx": question.idx,
        "prompt": [_message(message) for message in question.conversation.messages],
        "images": [{"bytes": image, "path": _path(question)} for image in question.images],
    }


def said(answer: str) -> list[dict]:
    """The messages of an answer."""
    return [_message(Message("assistant", (answer,)))]


def _rows(cleaned: Cleaned) -> Iterator[tuple[Key, dict]]:
    for group in cleaned.pairs():
        for pair in group.rows:
            answers = {"chosen": said(pair["chosen"]), "rejected": said(pair["rejected"])}
            yield pair_key(pair), {**asked(group.question), **answers, "margin": pair["margin"]}


def _message(message: Message) -> dict:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else IMAGE_PART for part in message.content]
    return {"role": message.role, "content": parts}


def _path(question: Question) -> str | None:
    """What the input calls the only picture."""
    return question.image_path if len(question.images) == 1 else None
