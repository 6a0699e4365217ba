"""What --rule names: a built-in rule, or a function in a file of the user's. Read here, and run in a worker alone."""

import hashlib
import re
from dataclasses import dataclass

from data_engine.errors import UserError, nearest
from data_engine.flag_files import read_text
from data_engine.rules import BUILT_IN

_FILE = re.compile(r"(.+\.py):(.*)", re.DOTALL)


@dataclass(frozen=True)
class Rule:
    """A function (row, answers) -> numbers, not imported yet."""

    shown: str
    """as --rule has it"""
    module: str | None = None
    """of a built-in rule"""
    collects: str | None = None
    """the column of which a built-in rule needs all values"""
    function: str = ""
    """its name in the file"""
    source: str = ""
    """what was in the file when it was read: this is what runs, whatever is in the file later"""

    @property
    def identity(self) -> str:
        """What units are bound to."""
        if self.module is not None:
            return f"{self.shown} {BUILT_IN[self.shown].version}"
        return f"{self.function} {hashlib.sha256(self.source.encode()).hexdigest()}"


def read_rule(shown: str) -> Rule:
    """The rule of that name, or of FILE.py:function. Raises UserError where there is none; nothing of it is run."""
    own = BUILT_IN.get(shown)
    if own is not None:
        return Rule(shown, own.module, own.collects)
    match = _FILE.fullmatch(shown)
    if match is None:
        raise UserError(
            f'rule "{shown}" is neither {", ".join(BUILT_IN)} nor FILE.py:function{nearest(shown, BUILT_IN)}'
        )
    file, function = match.groups()
    if not function.isidentifier():
        raise UserError(f'rule "{shown}": "{function}" cannot be the name of a function; expected FILE.py:function')
    source = read_text(f'rule "{shown}": {file}', file, "Python's functions")
    try:
        compile(source, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f'rule "{shown}": the file is not Python{where}: {getattr(error, "msg", error)}') from None
    return Rule(shown, function=function, source=source)
