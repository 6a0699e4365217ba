"""A dataset of questions, from any of the sources: checked as a whole when it is opened, read a few rows at a time.

A fault of the dataset as a whole (a missing column, a duplicate idx) raises UserError at once. A fault of one row is
that row's `problem`; the other rows are read on.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
from PIL import Image

from data_engine.config import RunConfig
from data_engine.errors import BadRow, UserError
from data_engine.flag_files import look_up, nearest_path
from data_engine.questions.batch import QuestionBatch
from data_engine.questions.column_checks import check_columns, checked_ids, has_images, listed_ids
from data_engine.questions.conversation import Conversation
from data_engine.questions.images import BadImage, Decode, MissingImage, decode, read_each
from data_engine.questions.sources import open_source
from data_engine.questions.sources.base import PROBLEM, Source
from data_engine.questions.sources.column_names import ColumnNames
from data_engine.questions.sources.column_types import as_bytes, holds_bytes, is_binary, is_text, plain_values
from data_engine.schemas import INPUT_COLUMNS, OPTIONAL_COLUMNS
from data_engine.store.file_hashes import HashFiles

# Of a row's digest, in hex: 128 bits.
DIGEST_LENGTH = 32
_NO_LENGTH = b"\xff" * 8


@dataclass(frozen=True)
class Question:
    """One row of the input."""

    idx: int | str
    question: str | None
    """the text of the message that is to be answered"""
    image: bytes | None
    """the row's only image, encoded, as images.decode takes it; None where it has several or none"""
    image_path: str | None
    """what the input calls that image"""
    extra: dict[str, str | None] = field(default_factory=dict)
    """the columns of schemas.OPTIONAL_COLUMNS that the input has"""
    problem: str | None = None
    """why the row cannot be used; then it has no images and no conversation"""
    missing: bool = False
    """the problem is not the row's: an image could not be read for what is missing around it"""
    conversation: Conversation | None = None
    """all that a model is asked, with the system text; None with a problem"""
    images: tuple[bytes, ...] = ()
    """encoded, in the order in which the conversation numbers them"""

    def __post_init__(self) -> None:
        """One image and one question need not be spelled out again."""
        if self.conversation is None and self.problem is None and self.question is not None:
            images = () if self.image is None else (self.image,)
            object.__setattr__(self, "images", images)
            object.__setattr__(self, "conversation", Conversation.of(self.question, len(images)))

    @property
    def is_single(self) -> bool:
        """Whether it is one image and one question, with nothing around them."""
        return self.conversation is not None and self.conversation.is_single

    @functools.cached_property
    def digest(self) -> str | None:
        """Names what a model sees of the row, its texts and its encoded pictures; None where it cannot be used."""
        if self.problem is not None:
            return None
        if self.is_single:
            texts = self.question.encode()
            content = hashlib.sha256(len(texts).to_bytes(8, "little") + texts)
        else:
            turns = [[message.role, *message.content] for message in self.conversation.messages]
            # A length that no question has, so that the two forms never meet.
            content = hashlib.sha256(_NO_LENGTH + json.dumps(turns).encode() + _NO_LENGTH)
            content.update(b"".join(len(image).to_bytes(8, "little") for image in self.images))
        for image in self.images:
            content.update(image)
        return content.hexdigest()[:DIGEST_LENGTH]


class Questions:
    """A dataset of questions: its size and ids at once, its rows streamed.

    `idx_type` is the input's own integer type, or string for any kind of text. An empty question counts as one.
    """

    idx: list[int | str]
    idx_type: pa.DataType
    columns: tuple[str, ...]
    optional_columns: tuple[str, ...]
    further_columns: tuple[str, ...]
    """what sources of reward asked for besides: see `records`"""
    has_images: bool
    """whether the dataset has a column of images; without one, every question is asked without an image"""
    image_root: Path | None
    """the folder that paths of images are below"""

    def __init__(
        self,
        source: Source,
        name: str,
        image_root: Path | None = None,
        limit: int | None = None,
        system: str | None = None,
    ):
        check_columns(source.columns, source.names, name)
        kind = source.columns["idx"]
        self.idx_type = kind if pa.types.is_integer(kind) else pa.string()
        self.idx = checked_ids(source.ids(limit), name)
        self.columns = tuple(source.columns)
        self.optional_columns = tuple(column for column in OPTIONAL_COLUMNS if column in source.columns)
        self.has_images = has_images(source.columns)
        self._input_columns = tuple(column for column in INPUT_COLUMNS[1:] if column in source.columns)
        read = source.names.are_read(source.columns)
        self.further_columns = tuple(
            name for name in read
            if name not in (*INPUT_COLUMNS, *OPTIONAL_COLUMNS) and not holds_bytes(source.columns[name])
        )  # fmt: skip
        self.image_root = image_root
        self._source, self._name, self._system = source, name, system
        self._is_limited = limit is not None

    @functools.cached_property
    def _every_idx(self) -> list[int | str]:
        """Also of the rows that `limit` leaves out."""
        return listed_ids(self._source.ids(None), self._name) if self._is_limited else self.idx

    @functools.cached_property
    def beyond_limit(self) -> frozenset[int | str]:
        """The ids of the rows that `limit` leaves out."""
        return frozenset(self._every_idx[len(self) :])

    @property
    def num_rows(self) -> int:
        """The number of rows of the dataset, those that `limit` leaves out among them."""
        return len(self._every_idx)

    def __len__(self) -> int:
        return len(self.idx)

    def fingerprint(self, hash_files: HashFiles) -> str:
        """In hex, by content: the ids in their order, and every byte of what the rows are read from.

        Of the whole dataset, whatever `limit` leaves of it.
        """
        content = hashlib.sha256("\n".join(map(json.dumps, self._every_idx)).encode())
        content.update(self._source.fingerprint(hash_files).encode())
        return content.hexdigest()

    def rows(self, rows: range) -> Iterator[Question]:
        """The questions of consecutive rows, in order."""
        assert rows.step == 1, f"rows are consecutive, got {rows}"
        ids = iter(self.idx[rows.start : rows.stop])
        rows = range(rows.start, min(rows.stop, len(self.idx)))
        for batch in self._source.batches(rows, [*self._input_columns, *self.optional_columns]):
            extras = {name: _extra_cells(batch.column(name)) for name in self.optional_columns}
            problems = batch.column(PROBLEM).to_pylist() if PROBLEM in batch.schema.names else [None] * batch.num_rows
            questions = QuestionBatch(batch, self._input_columns)
            for i in range(batch.num_rows):
                extra = {name: cells[i] for name, cells in extras.items()}
                yield self._question(next(ids), questions, i, problems[i], extra)

    def records(self, rows: range) -> Iterator[dict]:
        """Consecutive rows without their pictures, as rules read them: idx, question, and the further columns' values.

        A question that cannot be read is None.
        """
        ids = iter(self.idx[rows.start : rows.stop])
        rows = range(rows.start, min(rows.stop, len(self.idx)))
        texts = [column for column in self._input_columns if column not in ("image", "images")]
        for batch in self._source.batches(rows, [*texts, *self.optional_columns, *self.further_columns]):
            questions = QuestionBatch(batch, texts)
            cells = {name: _extra_cells(batch.column(name)) for name in self.optional_columns}
            cells |= {name: self._source.values(batch.column(name)) for name in self.further_columns}
            for i in range(batch.num_rows):
                further = {name: values[i] for name, values in cells.items()}
                yield {"idx": next(ids), "question": _question_in(questions, i), **further}

    def file_sizes(self) -> list[tuple[str, int]]:
        """(name, rows) of each file of the dataset, in order; [] for a source that does not tell."""
        return self._source.file_sizes()

    @property
    def warnings(self) -> Sequence[str]:
        """What a person should know of its files."""
        return self._source.warnings

    def in_dataset(self, name: str) -> str:
        """What the dataset calls a column."""
        return self._source.names.in_dataset(name)

    @property
    def listed(self) -> str:
        """Its columns, by its own names, for the end of a message."""
        return self._source.names.listed(self.columns)

    def column(self, name: str) -> Iterator[object]:
        """One of the optional or further columns, of all rows, those that `limit` leaves out too.

        What is made of the whole column is the same whatever the limit.
        """
        cells = _extra_cells if name in self.optional_columns else self._source.values
        for batch in self._source.batches(range(self.num_rows), [name]):
            yield from cells(batch.column(name))

    def _question(
        self, idx: int | str, questions: QuestionBatch, row: int, problem: str | None, extra: dict
    ) -> Question:
        """One row; `problem` is what its source says of it."""
        question, conversation, cells, images, missing = None, None, [], (), False
        try:
            unnumbered = questions.unnumbered(row)
            question = unnumbered.conversation.question
            cells = questions.images(row)
            conversation = unnumbered.with_images(len(cells)).with_system(self._system)
            question = question if unnumbered.keeps_text(len(cells)) else conversation.question
            images = tuple(read_each(cells, lambda cell: cell.read(self.image_root)))
        except BadImage as error:
            missing = problem is None and isinstance(error, MissingImage)
            problem = problem or str(error)
        path = cells[0].name if len(cells) == 1 else None
        if problem is not None:
            return Question(idx, question, None, path, extra, problem, missing)
        image = images[0] if len(images) == 1 else None
        return Question(idx, question, image, path, extra, conversation=conversation, images=images)


def load_questions(
    path: str,
    *,
    split: str | None = None,
    revision: str | None = None,
    image_root: str | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    system: str | None = None,
    question: str | None = None,
    further: tuple[str, ...] | None = (),
) -> Questions:
    """Open a dataset and check it as a whole; `limit` keeps its first rows only.

    `columns` are the dataset's names of columns by the engine's, as RunConfig.column_names has them; `system` is the
    system text of rows without one; `question` is asked in each row of a dataset that has no questions, as a folder of
    pictures. `further` are columns that are read besides, None for all that there are.

    Raises UserError where it cannot be opened, lacks a column, or has a null or repeated idx; the message says which.
    """
    if image_root is not None:
        look_up("image_root", image_root)
        if not Path(image_root).is_dir():
            raise UserError(f'image_root "{image_root}" is not a folder{nearest_path(image_root)}')
    source = open_source(path, split, revision, ColumnNames(columns or {}, further), question)
    root = Path(image_root) if image_root is not None else source.image_root
    return Questions(source, f'dataset "{path}"', root, limit, system)


def open_questions(config: RunConfig, further: tuple[str, ...] | None = ()) -> Questions:
    """The dataset that a configuration names, checked as a whole; `further` as of load_questions."""
    return load_questions(
        config.dataset_path,
        split=config.dataset_split,
        revision=config.dataset_revision,
        image_root=config.image_root,
        limit=config.limit,
        columns=config.column_names,
        system=config.system,
        question=config.question,
        further=further,
    )


def is_other(question: Question, digest: str | None) -> bool:
    """Whether a row has another content than the one with this digest; None: one that could not be used then."""
    return question.digest is not None and digest is not None and question.digest != digest


def require_same(questions: Iterable[Question], digests: Sequence[str | None]) -> Iterator[Question]:
    """The questions of a unit, in order, held against the digests of those that its answers were sampled from.

    Raises UserError for a row with other content. One that could not be used then, or cannot be used now, has none.
    """
    for question, digest in zip(questions, digests, strict=True):
        if is_other(question, digest):
            raise UserError(
                f"row {question.idx!r}: its question or picture is not the one that its answers were sampled from. "
                "Give back the dataset_path and image_root of then, or choose another work_dir"
            )
        yield question


def read_images(question: Question, max_megapixels: float, decode: Decode = decode) -> list[Image.Image]:
    """The decoded images of a row, in order; the reason of BadRow or images.BadImage says which one is wrong."""
    if question.problem:
        raise BadRow(question.problem)
    return read_each(question.images, lambda image: decode(image, max_megapixels))


def left_out_for(question: Question, problem: Exception) -> Question:
    """The question, marked as missing where an image turned out to be so only when it was decoded."""
    return replace(question, missing=True) if isinstance(problem, MissingImage) else question


def _question_in(questions: QuestionBatch, row: int) -> str | None:
    try:
        return questions.unnumbered(row).conversation.question
    except BadImage:
        return None


def _extra_cells(column: pa.Array) -> list[str | None]:
    """An optional column as text, or as JSON where it holds something else."""
    if is_text(column.type) or is_binary(column.type):
        return [value if value is None else value.decode(errors="replace") for value in as_bytes(column).to_pylist()]
    values = plain_values(column)
    return [value if value is None or isinstance(value, str) else json.dumps(value, default=str) for value in values]
