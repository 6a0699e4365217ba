"""The cells of a JSON or CSV row as columns take them; what has no place in a column is named for what it is."""

import json

from data_engine.questions.base64_images import image_bytes
from data_engine.questions.images import BadImage, read_each
from data_engine.questions.sources.base import PROBLEM
from data_engine.schemas import INPUT_COLUMNS, OPTIONAL_COLUMNS

_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
# Keys of a message, in the forms of OpenAI and of ShareGPT.
_SPEAKERS = ("role", "from")


def cells_of(row: dict, columns: list[str]) -> dict:
    """A cell for each column, and under PROBLEM why the row cannot be used, or None.

    An image becomes {bytes, path}, text becomes bytes, and messages and optional columns that are no text become JSON;
    so do all cells of columns that are none of the engine's own.
    """
    cells, problems = {}, []
    for name in columns:
        value = row.get(name)
        try:
            if name == "question":
                asked = row.get("messages") if "messages" in columns else None
                cells[name] = None if value is None and asked is not None else _question(value, name in row)
            elif name == "image":
                cells[name] = _image(value)
            elif name == "images":
                cells[name] = images_in(value)
            elif name not in (*INPUT_COLUMNS, *OPTIONAL_COLUMNS):
                cells[name] = None if value is None else json.dumps(value)
            elif name == "system" and not isinstance(value, str | None):
                raise BadImage(f"system is {_kind(value)}; expected text")
            elif isinstance(value, str):
                cells[name] = _text(value)
            else:
                cells[name] = None if value is None else json.dumps(value).encode()
        except BadImage as error:
            cells[name] = None
            problems.append(str(error))
    return cells | {PROBLEM: problems[0] if problems else None}


def _question(value: object, is_there: bool) -> bytes | None:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list) and value and all(_is_message(item) for item in value):
        # Those of ShareGPT have other keys than a chat that is read.
        mend = "; a chat is named by --columns messages=NAME" if all("role" in item for item in value) else ""
        raise BadImage(f"question is a list of {len(value)} chat messages; expected the text of the question{mend}")
    if isinstance(value, list):
        raise BadImage(f"question is a list of {len(value)}; expected text")
    if value is None and is_there:
        return None
    raise BadImage(f"question is {_kind(value)}; expected text" if is_there else "row has no question")


def _image(value: object) -> dict | None:
    if isinstance(value, list):
        if len(value) > 1:
            several = 'several stand in "images": --columns images=NAME'
            raise BadImage(f'row has {len(value)} images in "image", which takes one; {several}')
        value = value[0] if value else None
    if value is None:
        return None
    if isinstance(value, str):
        return {"bytes": None, "path": _text(value)}
    if not isinstance(value, dict):
        raise BadImage(f"image is {_kind(value)}; expected a path, base64 text, or an object with one of them")
    if not {"bytes", "path"} & value.keys():
        keys = json.dumps(list(value)[:5])
        raise BadImage(f'image is an object without "bytes" and "path"; it has {keys[:200]}')
    data, path = value.get("bytes"), value.get("path")
    for name, cell in (("bytes", data), ("path", path)):
        if not isinstance(cell, str | None):
            expected = "base64 text" if name == "bytes" else "text"
            raise BadImage(f'"{name}" of the image is {_kind(cell)}; expected {expected}')
    return {"bytes": image_bytes(_text(data)) if data else None, "path": None if path is None else _text(path)}


def images_in(value: object) -> list | None:
    """The images, each {bytes, path}, of a list of them, of its text in JSON, or of one image; None of nothing."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadImage('images is text, but not JSON; expected a list of images, as ["a.jpg", "b.jpg"]') from None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    value = [value] if isinstance(value, str | dict) else value
    if not isinstance(value, list):
        raise BadImage(f"images is {_kind(value)}; expected a list of images")
    # A list of images in the place of one is no image.
    return read_each(value, lambda item: _image([item] if isinstance(item, list) else item))


def _is_message(item: object) -> bool:
    return isinstance(item, dict) and any(key in item for key in _SPEAKERS)


def _kind(value: object) -> str:
    return next(name for kind, name in _KINDS.items() if isinstance(value, kind))


def _text(value: str) -> bytes:
    # Half a surrogate pair becomes bytes that are not UTF-8; dataset.py then refuses the row.
    return value.encode("utf-8", "surrogatepass")
