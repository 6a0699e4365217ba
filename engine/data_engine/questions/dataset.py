"""A dataset of questions, from any of the sources: checked as a whole when it is opened, read a few rows at a time.

A fault of the dataset as a whole (a missing column, a duplicate idx) raises UserError at once. A fault of one row is
that row's `problem`; the other rows are read on.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
from PIL import Image

from data_engine.config import RunConfig
from data_engine.errors import BadRow, UserError
from data_engine.questions.base64_images import image_bytes, is_image_text
from data_engine.questions.images import MAX_FILE_BYTES, BadImage, Decode, MissingImage, decode, read_under
from data_engine.questions.sources import open_source
from data_engine.questions.sources.base import PROBLEM, REQUIRED_COLUMNS, Source
from data_engine.questions.sources.column_types import is_binary, is_text
from data_engine.schemas import OPTIONAL_COLUMNS
from data_engine.store.file_hashes import HashFiles

# A longer question exceeds every model's context, and would take long to tokenize.
MAX_QUESTION_BYTES = 1 << 20
# Of a row's digest, in hex: 128 bits.
DIGEST_LENGTH = 32
# Columns of conversations in the formats that trainers read.
CHAT_COLUMNS = ("conversations", "messages")


@dataclass(frozen=True)
class Question:
    """One row of the input. `image` is encoded, as images.decode takes it; None where the row has none."""

    idx: int | str
    question: str | None
    image: bytes | None
    image_path: str | None
    """the `path` field of the image struct, as it was"""
    extra: dict[str, str | None] = field(default_factory=dict)
    """the columns of schemas.OPTIONAL_COLUMNS that the input has"""
    problem: str | None = None
    """why the row cannot be used; with it, question or image is None"""
    missing: bool = False
    """the problem is not the row's: its image could not be read for what is missing around it"""

    @functools.cached_property
    def digest(self) -> str | None:
        """Names what a model sees of the row, its question and its encoded picture; None where it cannot be used."""
        if self.problem is not None:
            return None
        question = self.question.encode()
        content = hashlib.sha256(len(question).to_bytes(8, "little") + question)
        content.update(self.image)
        return content.hexdigest()[:DIGEST_LENGTH]


class Questions:
    """A dataset of questions: its size and ids at once, its rows streamed.

    `idx_type` is the input's own integer type, or string for any kind of text. An empty question counts as one.
    """

    idx: list[int | str]
    idx_type: pa.DataType
    columns: tuple[str, ...]
    optional_columns: tuple[str, ...]

    def __init__(self, source: Source, name: str, image_root: Path | None = None, limit: int | None = None):
        _check_columns(source.columns, name)
        kind = source.columns["idx"]
        self.idx_type = kind if pa.types.is_integer(kind) else pa.string()
        self.idx = _checked_ids(source.ids(limit), name)
        self.columns = tuple(source.columns)
        self.optional_columns = tuple(column for column in OPTIONAL_COLUMNS if column in source.columns)
        self._source = source
        self._image_root = image_root

    def __len__(self) -> int:
        return len(self.idx)

    def fingerprint(self, hash_files: HashFiles) -> str:
        """In hex, by content: the ids in their order, and every byte of what the rows are read from."""
        content = hashlib.sha256("\n".join(map(json.dumps, self.idx)).encode())
        content.update(self._source.fingerprint(hash_files).encode())
        return content.hexdigest()

    def rows(self, rows: range) -> Iterator[Question]:
        """The questions of consecutive rows, in order."""
        assert rows.step == 1, f"rows are consecutive, got {rows}"
        ids = iter(self.idx[rows.start : rows.stop])
        rows = range(rows.start, min(rows.stop, len(self.idx)))
        for batch in self._source.batches(rows, ["question", "image", *self.optional_columns]):
            texts = _as_bytes(batch.column("question"))
            images = _image_cells(batch.column("image"))
            extras = {name: _extra_cells(batch.column(name)) for name in self.optional_columns}
            problems = batch.column(PROBLEM).to_pylist() if PROBLEM in batch.schema.names else [None] * batch.num_rows
            for i in range(batch.num_rows):
                extra = {name: cells[i] for name, cells in extras.items()}
                row = self._question(next(ids), texts[i], (images[0][i], images[1][i]), extra)
                yield row if problems[i] is None else replace(row, image=None, problem=problems[i], missing=False)

    def _question(self, idx: int | str, text: pa.Scalar, cell: tuple[pa.Scalar, pa.Scalar], extra: dict) -> Question:
        path, embedded = cell[1].as_py(), None
        if path is not None and is_image_text(path):
            path, embedded = None, path
        path = path if path is None else path.decode(errors="replace")
        question, image, problem, missing = None, None, None, False
        try:
            question = _question_text(_limited(text, MAX_QUESTION_BYTES, "question"))
            image = _image_data(_limited(cell[0], MAX_FILE_BYTES, "image") or embedded) or self._read_image(path)
        except BadImage as error:
            problem, missing = str(error), isinstance(error, MissingImage)
        return Question(idx, question, image, path, extra, problem, missing)

    def _read_image(self, path: str | None) -> bytes:
        if not path:
            raise BadImage("row has no image: neither bytes nor a path")
        if self._image_root is None:
            raise MissingImage("image has no bytes, and its path is not opened without image_root")
        return read_under(self._image_root, path)


def load_questions(
    path: str,
    *,
    split: str | None = None,
    revision: str | None = None,
    image_root: str | None = None,
    limit: int | None = None,
) -> Questions:
    """Open a dataset and check it as a whole; `limit` keeps its first rows only.

    Raises UserError where it cannot be opened, lacks a column, or has a null or repeated idx; the message says which.
    """
    if image_root is not None and not Path(image_root).is_dir():
        raise UserError(f'image_root "{image_root}" is not a folder')
    source = open_source(path, split, revision)
    return Questions(source, f'dataset "{path}"', Path(image_root) if image_root is not None else None, limit)


def open_questions(config: RunConfig) -> Questions:
    """The dataset that a configuration names, checked as a whole."""
    return load_questions(
        config.dataset_path,
        split=config.dataset_split,
        revision=config.dataset_revision,
        image_root=config.image_root,
        limit=config.limit,
    )


def require_same(questions: Iterable[Question], digests: Sequence[str | None]) -> Iterator[Question]:
    """The questions of a unit, in order, held against the digests of those that its answers were sampled from.

    Raises UserError for a row with other content. One that could not be used then, or cannot be used now, has none.
    """
    for question, digest in zip(questions, digests, strict=True):
        if question.digest is not None and digest is not None and question.digest != digest:
            raise UserError(
                f"row {question.idx!r}: its question or picture is not the one that its answers were sampled from. "
                "Give back the dataset_path and image_root of then, or choose another work_dir"
            )
        yield question


def read_image(question: Question, max_megapixels: float, decode: Decode = decode) -> Image.Image:
    """The decoded image of a row. Raises BadRow or images.BadImage with the reason that goes into the quarantine."""
    if question.problem:
        raise BadRow(question.problem)
    return decode(question.image, max_megapixels)


def _check_columns(columns: dict[str, pa.DataType], name: str) -> None:
    if not columns:
        raise UserError(f"{name} is empty")
    missing = [f'"{column}"' for column in REQUIRED_COLUMNS if column not in columns]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        shown = ", ".join([*columns][:20])
        raise UserError(f"{name} has no column{plural} {', '.join(missing)}; columns: {shown}{_hint(columns)}")
    kinds = {
        "idx": ("integer or text", lambda kind: pa.types.is_integer(kind) or is_text(kind)),
        "question": ("text", lambda kind: is_text(kind) or pa.types.is_binary(kind)),
        "image": ("struct{bytes, path}, binary, or text that is a path", _is_image),
    }
    for column, (expected, fits) in kinds.items():
        if not fits(columns[column]):
            raise UserError(f'{name}: column "{column}" must be {expected}, got {columns[column]}')


def _hint(columns: dict[str, pa.DataType]) -> str:
    """How to mend a dataset without one of the required columns."""
    chat = [f'"{column}"' for column in CHAT_COLUMNS if column in columns]
    if chat and "question" not in columns:
        return (
            f"; {', '.join(chat)} hold conversations, as of LLaVA, ShareGPT and LLaMA-Factory: write the text of one "
            'turn of the user as "question", its image as "image", and a unique "idx"'
        )
    return "" if "idx" in columns else '; give every question an "idx" of its own, text or a number'


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        parts = [kind.field(i) for i in range(kind.num_fields)]
        return any(part.name in ("bytes", "path") for part in parts) and all(
            is_binary(part.type) or is_text(part.type) for part in parts if part.name in ("bytes", "path")
        )
    return is_binary(kind) or is_text(kind)


def _checked_ids(column: pa.ChunkedArray, name: str) -> list[int | str]:
    if len(column) == 0:
        raise UserError(f"{name} has no rows")
    if column.null_count:
        first = column.is_null().index(True).as_py()
        raise UserError(
            f"{name}: idx is null in {column.null_count} of {len(column)} rows, first in row {first} (counted from 0)"
        )
    try:
        ids = column.to_pylist()
    except UnicodeDecodeError:
        raise UserError(f'{name}: column "idx" holds text that is not valid UTF-8') from None
    if len(set(ids)) < len(ids):
        repeated = [(value, count) for value, count in Counter(ids).items() if count > 1]
        shown = ", ".join(f"{json.dumps(value)} ({count} times)" for value, count in repeated[:5])
        more = ", ..." if len(repeated) > 5 else ""
        raise UserError(f"{name}: every idx must be unique, but {len(repeated)} are repeated: {shown}{more}")
    return ids


def _question_text(data: bytes | None) -> str:
    if data is None:
        raise BadImage("question is null")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadImage("question is not valid UTF-8") from None


def _image_data(data: bytes | None) -> bytes | None:
    """An encoded image, also where it stands as base64."""
    return image_bytes(data) if data is not None and is_image_text(data) else data


def _limited(cell: pa.Scalar, most_bytes: int, what: str) -> bytes | None:
    """A cell's bytes; raises BadImage, before they are copied, where there are too many."""
    buffer = cell.as_buffer()
    if buffer is not None and buffer.size > most_bytes:
        raise BadImage(f"{what} has {buffer.size} bytes, more than {most_bytes}")
    return cell.as_py()


def _as_bytes(column: pa.Array) -> pa.Array:
    """Text or binary of any layout as bytes: Arrow does not promise that text is valid UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary())


def _image_cells(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(bytes, paths) of an image column."""
    if pa.types.is_struct(column.type):
        # flatten, unlike field(), keeps the struct's own nulls.
        parts = dict(
            zip((column.type.field(i).name for i in range(column.type.num_fields)), column.flatten(), strict=True)
        )
    else:
        parts = {"path" if is_text(column.type) else "bytes": column}
    empty = pa.nulls(len(column), pa.large_binary())
    return tuple(_as_bytes(parts[name]) if name in parts else empty for name in ("bytes", "path"))


def _extra_cells(column: pa.Array) -> list[str | None]:
    """An optional column as text, or as JSON where it holds something else."""
    if is_text(column.type) or is_binary(column.type):
        return [value if value is None else value.decode(errors="replace") for value in _as_bytes(column).to_pylist()]
    return [value if value is None else json.dumps(value, default=str) for value in column.to_pylist()]
