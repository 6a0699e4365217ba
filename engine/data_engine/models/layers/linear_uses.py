"""How a module uses its linear layers, read from its source code.

A layer whose weight the code reads itself is neither packed nor merged. Layers are merged where each is called once,
with the same tensor.
"""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType

from torch import nn

# `self.NAME.weight` in code, but for questions about its kind.
_WEIGHT_READ = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|ndim)\b)")
# What may be computed under a condition, or several times.
_CONDITIONAL = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def with_weights_read(decoder: nn.Module) -> set[nn.Module]:
    """The layers whose weight the module that holds them reads itself, as Gemma 3n does."""
    return {
        layer
        for owner in decoder.modules()
        for name in _names_read(type(owner))
        if isinstance(layer := getattr(owner, name, None), nn.Linear)
    }


def _names_read(kind: type) -> set[str]:
    """NAME of each _WEIGHT_READ in the code of a class."""
    return _names_by_class(inspect.getmodule(kind)).get(kind.__name__, set())


@functools.cache
def _names_by_class(module: ModuleType) -> dict[str, set[str]]:
    """_names_read of all classes of a module: inspect.getsource(kind) would parse the file for each class, 0.1 s."""
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        return {}
    found: dict[str, set[str]] = {}
    # Few files have any, and the others need not be parsed.
    if _WEIGHT_READ.search(source):
        lines = source.splitlines(keepends=True)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                code = "".join(lines[node.lineno - 1 : node.end_lineno])
                found.setdefault(node.name, set()).update(_WEIGHT_READ.findall(code))
    return found


@functools.cache
def calls_with_one_tensor(kind: type[nn.Module], names: tuple[str, ...]) -> bool:
    """Whether the code of a module's forward calls each of its layers once, always, with one variable unchanged."""
    try:
        [function] = ast.parse(textwrap.dedent(inspect.getsource(kind.forward))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return False
    # The statements that call one, by their place in the function's own body.
    places = [
        (at, call)
        for at, statement in enumerate(function.body)
        if isinstance(statement, ast.Assign | ast.Return | ast.Expr)
        for call in _calls(statement, names)
    ]
    given = {call.args[0].id for _, call in places if _is_plain(call)}
    uses = [node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute) and node.attr in names]
    if sorted(uses) != sorted(names) or len(places) != len(names) or len(given) != 1:
        return False
    if not all(_is_plain(call) for _, call in places):
        return False
    first, last = places[0][0], places[-1][0]
    spanned = function.body[first : last + 1]
    if any(isinstance(node, _CONDITIONAL) for at, _ in places for node in ast.walk(function.body[at])):
        return False
    return not any(_may_change(node, *given) for statement in spanned[:-1] for node in ast.walk(statement))


def _calls(statement: ast.stmt, names: tuple[str, ...]) -> Iterator[ast.Call]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
            yield node


def _is_plain(call: ast.Call) -> bool:
    """self.NAME(variable)"""
    return (
        len(call.args) == 1
        and not call.keywords
        and isinstance(call.args[0], ast.Name)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "self"
    )


def _may_change(node: ast.AST, name: str) -> bool:
    """Whether a part of the code gives the variable another value, or writes into its tensor."""
    if isinstance(node, ast.Name):
        return node.id == name and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Subscript):
        return not isinstance(node.ctx, ast.Load)
    return isinstance(node, ast.Attribute) and node.attr.endswith("_") and not node.attr.endswith("__")
