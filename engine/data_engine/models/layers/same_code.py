"""Whether two functions do the same, by their source: transformers repeats much of its code under other names."""

import ast
import functools
import inspect
import textwrap
from types import FunctionType


def same_code(one: object, other: object) -> bool:
    """Whether two functions do the same word for word, whatever they call their variables.

    What they call in turn is not compared: names of functions, attributes and modules are words.
    """
    if not isinstance(one, FunctionType) or not isinstance(other, FunctionType):
        return False
    return one is other or (_code(one) is not None and _code(one) == _code(other))


@functools.cache
def _code(function: FunctionType) -> tuple[str, ...] | None:
    """The statements of a function, with numbers for names of its variables; None where it cannot be read."""
    try:
        [found] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    body = found.body[1:] if ast.get_docstring(found) is not None else found.body
    body = _returned_at_once(body)
    names = [node.arg for node in ast.walk(found.args) if isinstance(node, ast.arg)]
    mentioned = [node for part in body for node in ast.walk(part) if isinstance(node, ast.Name)]
    names += [node.id for node in mentioned if isinstance(node.ctx, ast.Store)]
    numbers = {name: f"variable {number}" for number, name in enumerate(dict.fromkeys(names))}
    for node in mentioned:
        node.id = numbers.get(node.id, node.id)
    return tuple(map(ast.dump, body))


def _returned_at_once(body: list[ast.stmt]) -> list[ast.stmt]:
    """`x = ...; return x` as `return ...`."""
    match body:
        case [*others, ast.Assign([ast.Name(name)], value), ast.Return(ast.Name(returned))] if name == returned:
            return [*others, ast.Return(value)]
    return body
