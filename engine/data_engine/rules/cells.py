"""What may stand in a column that a built-in rule compares answers with.

Each reader takes a cell, and gives what stands in it without nulls and NaN. It raises ValueError, which says what was
expected and what came, for anything else.
"""

import ast
import json
import re
import warnings
from datetime import date, time
from decimal import Decimal

# A bool is an int, and a datetime a date.
_VALUES = (str, int, float, Decimal, date, time)
_KINDS = {
    dict: ("an object", "objects"), list: ("a list", "lists"), bool: ("true or false", "true and false"),
    int: ("a number", "numbers"), float: ("a number", "numbers"), bytes: ("bytes", "bytes"),
}  # fmt: skip
_LIKE_A_LIST = re.compile(r"\[\s*['\"].*\]", re.DOTALL)


def values_in(cell: object) -> list:
    """The texts and numbers, true and false in a cell of the column `answer`, the last two as yes and no too; [] for
    an empty cell.
    """
    listed = _list_in_text("answer", cell)
    # "[1, 2]" is one answer: a vector, or an interval.
    if listed is not None and not (listed and all(isinstance(item, int | float | list) for item in listed)):
        cell = listed
    is_list = isinstance(cell, list)
    # A list of numbers is a vector, or an interval, as in a text.
    values = [str(item) if _is_vector(item) else item for item in _filled(cell if is_list else [cell])]
    for value in values:
        if not isinstance(value, _VALUES):
            expected = "text, a number, true or false, or a list of these"
            raise ValueError(f'the column "answer" must hold {expected}, got {_kind(value, is_list)}')
    # As questions are answered that take true or false.
    return values + ["yes" if value else "no" for value in values if isinstance(value, bool)]


def names_in(cell: object) -> list[str] | None:
    """The names in a cell of the column `objects`; None for an empty cell."""
    if not _filled([cell]):
        return None
    if isinstance(cell, str):
        listed = _list_in_text("objects", cell)
        cell = cell.split(",") if listed is None else listed
    is_list = isinstance(cell, list)
    names = _filled(cell if is_list else [cell])
    for name in names:
        if not (is_list and isinstance(name, str)):
            raise ValueError(f'the column "objects" must hold lists of names, got {_kind(name, is_list)}')
    return names


def _is_vector(item: object) -> bool:
    return isinstance(item, list) and bool(item) and all(isinstance(one, int | float | Decimal) for one in item)


def _filled(items: list) -> list:
    """The items without nulls, blank texts and NaN, as which pandas writes a null."""
    return [item for item in items if item is not None and item == item and str(item).strip()]


def _list_in_text(column: str, cell: object) -> list | None:
    """The list that a text is in JSON, or as Python writes one, the forms in which CSV holds lists; None for another
    cell. Raises ValueError for a text that begins as a list of texts, and is none.
    """
    text = cell.strip() if isinstance(cell, str) else ""
    if not text.startswith("["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        listed = _list_in_python(text)
    if listed is None and _LIKE_A_LIST.fullmatch(text):
        raise ValueError(
            f'the column "{column}" must hold a list in text as JSON or Python writes it, ["cat", "dog"], got '
            f"{json.dumps(text[:60], ensure_ascii=False)}; numpy writes no commas: save its arrays by tolist()"
        )
    return listed


def _list_in_python(text: str) -> list | None:
    with warnings.catch_warnings():
        # An escape that is none, as in "\\sqrt".
        warnings.simplefilter("error")
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    # ['cat' 'dog'] is one text to Python.
    is_whole = isinstance(found, list) and "".join(repr(found).split()) == "".join(text.split())
    return found if is_whole else None


def _kind(value: object, is_item: bool) -> str:
    """What a value that is refused is, or a list with it, in words."""
    one, many = _KINDS.get(type(value), (f"a value of type {type(value).__name__}", f"type {type(value).__name__}"))
    return f"a list of {many}" if is_item else one
