"""What is wrong with the columns of a dataset as a whole, before any row is read."""

import json
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from data_engine.errors import UserError
from data_engine.questions.sources.column_names import NUMBERED, ColumnNames, flag_for, meant_for
from data_engine.questions.sources.column_types import (
    CONVERSATIONS,
    IMAGE_FIELDS,
    MESSAGE_FIELDS,
    is_binary,
    is_json,
    is_list,
    is_text,
)


def check_columns(columns: Mapping[str, pa.DataType], names: ColumnNames, name: str) -> None:
    """Raise UserError where a dataset cannot be one of questions; `columns` has the engine's names."""
    if not columns:
        raise UserError(f"{name} is empty")
    names.require_there(columns, name)
    missing = [] if "idx" in columns else ["idx"]
    missing += [] if {"question", "messages"} & columns.keys() else ["question"]
    if missing:
        listed = " and ".join(f'"{column}"' for column in missing)
        plural = "s" if len(missing) > 1 else ""
        meant = _meant(missing, columns, names)
        are_meant = {*meant, "question"} if "messages" in meant else {*meant}
        hint = "" if are_meant >= set(missing) else _hint(columns)
        if taken := [f"{ours}={theirs}" for ours, theirs in names.theirs.items() if theirs in missing]:
            hint += f"; columns {','.join(taken)} has it under another name"
        if meant:
            hint += f"; if so meant, say {flag_for(meant)}"
        raise UserError(f"{name} has no column{plural} {listed}; {names.listed(columns)}{hint}")
    for column, (expected, fits) in _KINDS.items():
        if column in columns and not fits(columns[column]):
            shown = names.in_dataset(column)
            hint = NUMBERED if column == "idx" else ""
            if column == "image" and "images" not in columns and _is_images(columns[column]):
                hint = f"; lists of images stand in images: say {flag_for({'images': shown})}"
            raise UserError(f'{name}: column "{shown}" must be {expected}, got {columns[column]}{hint}')
    _check_images_are_meant(columns, name)


def checked_ids(column: pa.ChunkedArray, name: str) -> list[int | str]:
    """The ids of all rows. Raises UserError where one is null, repeated or no text."""
    if len(column) == 0:
        raise UserError(f"{name} has no rows")
    if column.null_count:
        first = column.is_null().index(True).as_py()
        raise UserError(
            f"{name}: idx is null in {column.null_count} of {len(column)} rows, first in row {first} (counted from 0)"
            f"{NUMBERED}"
        )
    ids = listed_ids(column, name)
    if len(set(ids)) < len(ids):
        repeated = [(value, count) for value, count in Counter(ids).items() if count > 1]
        shown = ", ".join(f"{json.dumps(value)} ({count} times)" for value, count in repeated[:5])
        more = f" and {len(repeated) - 5:,} more" if len(repeated) > 5 else ""
        raise UserError(f"{name}: every idx must be unique; repeated: {shown}{more}{NUMBERED}")
    return ids


def listed_ids(column: pa.ChunkedArray, name: str) -> list:
    """The ids, as they are. Raises UserError where one is no text."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise UserError(f'{name}: column "idx" holds text that is not valid UTF-8') from None


def has_images(columns: Mapping[str, pa.DataType]) -> bool:
    """Whether rows can have images; without a column of them, every question is asked without one."""
    return "image" in columns or "images" in columns


def _hint(columns: Mapping[str, pa.DataType]) -> str:
    """How to mend a dataset without one of the required columns."""
    named = next((name for name in CONVERSATIONS if name in columns), None)
    if "question" not in columns and "messages" not in columns and named is not None:
        return (
            f'; "{named}" holds conversations, as of LLaVA and ShareGPT: write them as "messages", lists of '
            '{"role": ..., "content": ...} that end with the user, or the text of one turn as "question", as '
            "docs/datasets.md shows"
        )
    if "idx" not in columns:
        return "; say --columns idx=NAME, or idx= to number the rows"
    return "; say --columns question=NAME, or ask the same in each row by --question"


def _meant(missing: list[str], columns: Mapping[str, pa.DataType], names: ColumnNames) -> dict[str, str]:
    """Columns under names that are often theirs, by the engine's; none where no missing one is among them."""
    found = {}
    for ours in [*missing, *([] if has_images(columns) else ["image", "images"])]:
        # A chat may be called as a question is.
        for name in (ours, "messages") if ours == "question" else (ours,):
            _, fits = _KINDS[name]
            # One that --columns gives a name has no other. In JSON all columns but the engine's own are text.
            free = {column: kind for column, kind in columns.items() if column not in names.theirs}
            fitting = meant_for(ours, [column for column, kind in free.items() if fits(kind) or is_text(kind)])
            if fitting is not None and fitting not in found.values():
                found[name] = fitting
                break
    return found if found.keys() & {*missing, "messages"} else {}


def _check_images_are_meant(columns: Mapping[str, pa.DataType], name: str) -> None:
    """Raise UserError where questions would be asked without their images, which stand in a column of another name."""
    if has_images(columns):
        return
    holding = [column for column, kind in columns.items() if _holds_images(kind)]
    if len(holding) > 1:
        raise UserError(
            f'{name} has no column "image" or "images", but {", ".join(map(json.dumps, holding))} hold images: one of '
            "them alone is named by --columns image=NAME; all of them are asked about where each row has them as one "
            'list in "images", as docs/datasets.md shows'
        )
    for column in holding:
        ours = "images" if is_list(columns[column]) else "image"
        raise UserError(
            f'{name} has no column "image" or "images", but "{column}" holds images: say so with '
            f"{flag_for({ours: column})}, or take it out"
        )


def _holds_images(kind: pa.DataType) -> bool:
    one = kind.value_type if is_list(kind) else kind
    return pa.types.is_struct(one) and _is_image(one)


def _is_text(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_binary(kind)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        parts = [part for part in kind if part.name in IMAGE_FIELDS]
        return bool(parts) and all(is_binary(part.type) or is_text(part.type) for part in parts)
    return is_binary(kind) or is_text(kind)


def _is_images(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or (is_list(kind) and _is_image(kind.value_type))


def _is_messages(kind: pa.DataType) -> bool:
    if not is_list(kind):
        return is_text(kind) or is_binary(kind) or is_json(kind)
    one = kind.value_type
    named = pa.types.is_struct(one) and {part.name for part in one} >= set(MESSAGE_FIELDS)
    return named or pa.types.is_null(one)


# What each column of the engine may hold: in words, and whether a type is of it.
_KINDS = {
    "idx": ("integer or text", lambda kind: pa.types.is_integer(kind) or is_text(kind)),
    "question": ("text", _is_text),
    "image": ("struct{bytes, path}, binary, or text that is a path", _is_image),
    "images": (
        "a list of struct{bytes, path}, of binary, or of text that is a path, or one of these",
        lambda kind: _is_images(kind) or _is_image(kind),
    ),
    "messages": ("a list of struct{role, content}, or its text in JSON", _is_messages),
    "system": ("text", _is_text),
}
