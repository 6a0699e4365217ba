"""Whether two functions do the same, by their source: transformers repeats much of its code under other names."""

import ast
import functools
import inspect
import textwrap
from types import FunctionType
from typing import NamedTuple

from transformers.utils.deprecation import deprecate_kwarg

# Of what the decorator makes of any function.
_RENAMING = deprecate_kwarg("former", version="0.0", new_name="new")(lambda new: None).__code__


class _Read(NamedTuple):
    code: tuple[str, ...]
    """arguments with their defaults, and statements, with numbers for names of variables"""
    globals: frozenset[str]
    """names that are no variable's"""


def without_former_names(function: FunctionType) -> FunctionType:
    """The function behind wrappers by which transformers takes former names of its arguments, if there are any."""
    while function.__code__ is _RENAMING:
        function = function.__wrapped__
    return function


def same_code(one: object, other: object) -> bool:
    """Whether two functions do the same word for word, whatever they call their variables.

    A name of a module or function that they have from around them must mean the same to both, or be the same code
    again. Names of attributes are words: what an object has by such a name is not compared.
    """
    if not isinstance(one, FunctionType) or not isinstance(other, FunctionType):
        return False
    if one is other:
        return True
    read, others = _read(one), _read(other)
    if read is None or others is None or read.code != others.code:
        return False
    return all(_same_meaning(*(each.__globals__.get(name) for each in (one, other))) for name in read.globals)


def _same_meaning(one: object, other: object) -> bool:
    return one is other or same_code(one, other)


@functools.cache
def _read(function: FunctionType) -> _Read | None:
    """None where it cannot be read: its source is not there, or not all of what it does."""
    # Of a wrapper, the source is that of what it wraps; and a closure holds what no source tells.
    if hasattr(function, "__wrapped__") or function.__closure__:
        return None
    try:
        [found] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(found, ast.FunctionDef):
        return None
    body = found.body[1:] if ast.get_docstring(found) is not None else found.body
    body = _returned_at_once(body)
    arguments = [node for node in ast.walk(found.args) if isinstance(node, ast.arg)]
    mentioned = [node for part in body for node in ast.walk(part) if isinstance(node, ast.Name)]
    names = [node.arg for node in arguments] + [node.id for node in mentioned if isinstance(node.ctx, ast.Store)]
    numbers = {name: f"variable {number}" for number, name in enumerate(dict.fromkeys(names))}
    around = frozenset(node.id for node in mentioned) - numbers.keys()
    for node in arguments:
        node.arg, node.annotation = numbers[node.arg], None
    for node in mentioned:
        node.id = numbers.get(node.id, node.id)
    return _Read((ast.dump(found.args), *map(ast.dump, body)), around)


def _returned_at_once(body: list[ast.stmt]) -> list[ast.stmt]:
    """`x = ...; return x` as `return ...`."""
    match body:
        case [*others, ast.Assign([ast.Name(name)], value), ast.Return(ast.Name(returned))] if name == returned:
            return [*others, ast.Return(value)]
    return body
