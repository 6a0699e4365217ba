"""Answers from a file, row by row: parquet, or JSON lines as they are or packed with gzip.

A row has idx, and answer or token_ids or both. Rows are checked one by one here, all together in given_answers.py.
"""

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.errors import UserError, first_line, python_command
from data_engine.flag_files import nearest_path
from data_engine.questions.sources.base import LFS_POINTER, is_lfs_pointer
from data_engine.questions.sources.column_types import as_bytes, as_type, is_binary, is_list, is_text, is_uuid
from data_engine.questions.sources.json_rows import DECODER, Repeating
from data_engine.questions.sources.text_file import MAX_RECORD_BYTES

COLUMNS = ("idx", "answer", "token_ids")
# Further columns of sampled_answer/, so that answers of another run can be taken as they are; nothing reads them.
UNREAD = ("sample_index", "finish_reason", "thought", "thought_tokens")
# What other programs call the column of answers.
_OFTEN_CALLED = ("response", "responses", "output", "completion", "generation", "prediction", "text", "content")
# What they call the question's id.
_IDX_OFTEN_CALLED = ("id", "ids", "index", "uid", "qid", "question_id", "sample_id", "custom_id")
# Answers of a pair.
_OF_A_PAIR = ("chosen", "rejected")
_A_ROW_EACH = "write a row for each answer"
# Of a line of the output of OpenAI's batches, and of vLLM's.
_OF_A_BATCH = {"custom_id", "response"}
# What they call its score.
_SCORES = ("score", "scores", "reward", "rewards", "rating")
# How an array of them becomes lines.
_AS_LINES = (
    "import sys, json; "
    'open(sys.argv[2], "w").writelines(json.dumps(row) + "\\n" for row in json.load(open(sys.argv[1])))'
)
_JSON_ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20
# token_ids are kept in 32 bits.
_MOST_ID = 2**31 - 1


@dataclass(frozen=True)
class GivenAnswer:
    """One answer; at least one of the two is there."""

    text: str | None
    token_ids: list[int] | None


@dataclass(frozen=True)
class GivenRow:
    """One row of the file."""

    number: int
    """its line, counted from 1, in JSON; its row, counted from 0, in parquet"""
    idx: int | str
    answer: GivenAnswer | None
    """None: it is empty, as what an API gives where it failed"""


class GivenFile:
    """A file of answers. Messages name it by its flag."""

    def __init__(self, path: str, idx_type: pa.DataType) -> None:
        """`idx_type` is that of the questions. Raises UserError where the file, or a column of it, cannot be used."""
        self.path, self.name = Path(path), f'answers "{path}"'
        self._wants_number = pa.types.is_integer(idx_type)
        self._is_parquet = self._kind()
        if self._is_parquet:
            self._check_columns()

    def rows(self) -> Iterator[GivenRow]:
        """In the order of the file, read a few at a time. Raises UserError at the first that cannot be used."""
        for number, row in self._parquet_rows() if self._is_parquet else self._json_rows():
            yield GivenRow(number, self._idx(number, row.get("idx")), self._answer(number, row))

    def num_rows(self) -> int:
        """The number of rows; of JSON that of line feeds, which blank lines have and the last line may not have."""
        with self._reading():
            if self._is_parquet:
                return pq.read_metadata(self.path).num_rows
            with self._opened() as stream:
                return sum(part.count(b"\n") for part in iter(lambda: stream.read(_BUFFER_BYTES), b""))

    def place(self, number: int) -> str:
        """Where a row stands, in words."""
        return f"row {number} (counted from 0)" if self._is_parquet else f"line {number}"

    def refusal(self, number: int, problem: str) -> UserError:
        """What is said of a row that cannot be used."""
        return UserError(f"{self.name}, {self.place(number)}: {problem}")

    def _kind(self) -> bool:
        """Whether it is parquet, and not JSON lines."""
        # Not by Path, which raises where a name is too long.
        if os.path.isdir(self.path):
            units = any(self.path.glob("unit-*.parquet"))
            hint = "; docs/given-answers.md shows how one is made of the answers of runs" if units else ""
            raise UserError(f"{self.name} is a folder; name one parquet or .jsonl file of answers{hint}")
        # It is read more than once, and opening a pipe may wait for ever.
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise UserError(f"{self.name} is no file but a pipe or a device; write the answers to a file")
        try:
            with open(self.path, "rb") as stream:
                begins = stream.read(4)
            is_pointer = is_lfs_pointer(self.path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"{self.name} cannot be read: {why}{nearest_path(self.path)}") from None
        if is_pointer:
            raise UserError(f"{self.name} {LFS_POINTER}")
        name = self.path.name.lower()
        if begins != b"PAR1" and not name.endswith(_JSON_ENDINGS):
            told = " and this one is no parquet file" if name.endswith(".parquet") else " by its name"
            if name.endswith(".json"):
                as_lines = python_command(_AS_LINES, self.path, f"{self.path.stem}.jsonl")
                named = "if each of its lines is an object, let its name end with .jsonl"
                told += f"; {as_lines if begins.lstrip().startswith(b'[') else named}"
            raise UserError(f"{self.name} must be a parquet, .jsonl or .jsonl.gz file,{told}")
        return begins == b"PAR1"

    def _check_columns(self) -> None:
        with self._reading():
            schema = pq.read_schema(self.path)
        self._require_known(schema.names, "")
        kinds = {
            "idx": ("integer or text", lambda kind: pa.types.is_integer(kind) or is_text(kind) or is_uuid(kind)),
            "answer": ("text", lambda kind: is_text(kind) or is_binary(kind)),
            "token_ids": ("a list of integers", _is_ids),
        }
        for column, (expected, fits) in kinds.items():
            if schema.names.count(column) > 1:
                raise UserError(f'{self.name} has more than one column "{column}"; keep one')
            if column in schema.names:
                kind = schema.field(column).type
                kind = kind.value_type if pa.types.is_dictionary(kind) else kind
                if not fits(kind):
                    mend = f"; {_A_ROW_EACH}" if column == "answer" and is_list(kind) else ""
                    raise UserError(f'{self.name}: column "{column}" must be {expected}, got {kind}{mend}')
        if "idx" not in schema.names or not {"answer", "token_ids"} & set(schema.names):
            raise UserError(
                f'{self.name} needs the column "idx", and "answer" or "token_ids"; columns: {", ".join(schema.names)}'
            )

    def _require_known(self, names: Collection[str], where: str) -> None:
        if {*names} >= _OF_A_BATCH:
            raise UserError(
                f"{self.name}{where} is of the output of a batch of an API; docs/given-answers.md shows how answers "
                "are taken out of it"
            )
        for name in names:
            if name not in (*COLUMNS, *UNREAD):
                near = get_close_matches(name, [one for one in COLUMNS if one not in names], n=1)
                hint = f'; did you mean "{near[0]}"?' if near else "; take it out"
                if name.lower() in _OFTEN_CALLED and not {"answer", "token_ids"} & {*names}:
                    hint = '; if it holds the answers, call it "answer"'
                if name.lower() in _OF_A_PAIR:
                    hint = f'; {_A_ROW_EACH}, with its text in "answer"'
                if name.lower() in _IDX_OFTEN_CALLED and "idx" not in names:
                    hint = '; if it holds the idx of the question, call it "idx"'
                if name.lower() in _SCORES:
                    hint = "; scores go into the dataset, where a rule reads them, as docs/given-answers.md shows"
                raise UserError(
                    f"{self.name}{where} has the unknown column {json.dumps(name)}{hint} (known: {', '.join(COLUMNS)})"
                )

    def _parquet_rows(self) -> Iterator[tuple[int, dict]]:
        number = 0
        with self._reading(), pq.ParquetFile(self.path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as opened:
            columns = [name for name in COLUMNS if name in opened.schema_arrow.names]
            for batch in opened.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
                cells = {name: _cells(batch.column(name)) for name in columns}
                for row in range(batch.num_rows):
                    yield number, {name: cells[name][row] for name in columns}
                    number += 1

    def _json_rows(self) -> Iterator[tuple[int, dict]]:
        with self._reading(), self._opened() as stream:
            for number, line in enumerate(iter(lambda: stream.readline(MAX_RECORD_BYTES + 1), b""), start=1):
                if len(line) > MAX_RECORD_BYTES:
                    raise self.refusal(number, f"more than {MAX_RECORD_BYTES} bytes")
                if line.strip():
                    yield number, self._parsed(number, line)

    def _opened(self) -> BinaryIO:
        """The stream of JSON lines, unpacked."""
        return gzip.open(self.path, "rb") if self.path.name.lower().endswith(".gz") else open(self.path, "rb")

    def _parsed(self, number: int, line: bytes) -> dict:
        try:
            row = DECODER.decode(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise self.refusal(number, f"not JSON: {error}") from None
        if not isinstance(row, dict):
            raise self.refusal(number, 'not an object; write one {"idx": ..., "answer": ...} a line')
        if isinstance(row, Repeating):
            raise self.refusal(number, "a key is there more than once; keep one")
        self._require_known(row, f", {self.place(number)}")
        return row

    def _idx(self, number: int, value: object) -> int | str:
        value = self._text(number, "idx", value) if isinstance(value, bytes) else value
        if type(value) is (int if self._wants_number else str):
            return value
        got = "null" if value is None else json.dumps(value, default=str)[:60]
        expected = "a whole number" if self._wants_number else "text"
        raise self.refusal(number, f"idx is {got}; expected {expected}, as the idx of the dataset")

    def _answer(self, number: int, row: dict) -> GivenAnswer | None:
        ids, text = row.get("token_ids"), row.get("answer")
        if text is not None:
            text = self._text(number, "answer", text)
        if not ids and (text is None or not text.strip()):
            return None
        if ids is not None:
            self._check_ids(number, ids)
        return GivenAnswer(text, ids)

    def _text(self, number: int, column: str, value: object) -> str:
        try:
            text = value.decode() if isinstance(value, bytes) else value
            if isinstance(text, str):
                # Half of a surrogate pair, as JSON may have, is no text.
                text.encode()
                return text
        except UnicodeError:
            raise self.refusal(number, f"{column} is not text in UTF-8") from None
        mend = f"; {_A_ROW_EACH}" if column == "answer" and isinstance(value, list) else ""
        raise self.refusal(number, f"{column} is {json.dumps(value, default=str)[:60]}; expected text{mend}")

    def _check_ids(self, number: int, ids: object) -> None:
        if not isinstance(ids, list) or not all(type(one) is int for one in ids):
            raise self.refusal(number, f"token_ids is {json.dumps(ids, default=str)[:60]}; expected whole numbers")
        if not ids:
            raise self.refusal(number, "token_ids is empty beside an answer; leave it out, or null")
        if not 0 <= min(ids) <= max(ids) <= _MOST_ID:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise self.refusal(number, f"token_ids has {wrong}, which is no id of a token")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Inside, what reading the file raises is a UserError that names it."""
        try:
            yield
        except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
            raise UserError(f"{self.name} is cut off, broken or cannot be read: {first_line(error)}") from None


def _is_ids(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or (is_list(kind) and pa.types.is_integer(kind.value_type))


def _cells(column: pa.Array) -> list:
    """Python's values; text as bytes, which Arrow does not check to be UTF-8."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        return [None] * len(column)
    if is_uuid(kind):
        column, kind = as_type(column, pa.string()), pa.string()
    return as_bytes(column).to_pylist() if is_text(kind) or is_binary(kind) else column.to_pylist()
