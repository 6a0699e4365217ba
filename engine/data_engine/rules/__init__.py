"""Rules: functions that give answers a number, without a model. The built-in ones are a file each, and a line here.

A file has the function

    make(collected: list[object]) -> Callable[[dict, list[str]], list[float | None]]

whose result takes a row of the dataset, without its pictures, and the answers to it, and gives a number an answer, or
None for one that is not rewarded. `collected` are the values of the column `collects` in all rows of the dataset. It
may have

    warning(answers: list[str]) -> str | None

which says what a person should know of the answers of the first unit, before the others are judged.
"""

from collections.abc import Callable
from dataclasses import dataclass

from data_engine.rules.cells import names_in, values_in


@dataclass(frozen=True)
class BuiltIn:
    """A rule of the engine's own."""

    module: str
    columns: tuple[str, ...]
    """of the dataset, which it compares answers with"""
    reads: Callable[[object], object]
    """of a cell of these; raises ValueError for what cannot stand there"""
    version: int = 1
    """raised where the same answers may get another number: units of another version are another run's"""
    collects: str | None = None
    """one of these columns, of which it needs all values"""


BUILT_IN = {
    "final_answer": BuiltIn("data_engine.rules.final_answer", ("answer",), values_in, version=4),
    "contains": BuiltIn("data_engine.rules.contains", ("answer",), values_in, version=6),
    "objects": BuiltIn("data_engine.rules.objects", ("objects",), names_in, version=2, collects="objects"),
}
