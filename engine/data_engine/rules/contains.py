"""The rule `contains`: 1 where the text of the column `answer` stands in an answer, else 0.

Both in one case, Unicode form and spacing; it must stand there as whole words, and a number as a whole number: 5 is not
in 1.5, 2,500 or -5. Of a list, any text does. None where the column has nothing to look for.
"""

import re
import unicodedata
from collections.abc import Callable

# What a text that begins, or ends, with a digit would be a part of: a decimal, thousands, a number below 0.
_BEFORE_DIGIT = r"(?<!\d[.,])(?<!(?<!\w)[-\u2212])"
_BEHIND_DIGIT = r"(?![.,]\d)"


def make(collected: list) -> Callable[[dict, list[str]], list[float | None]]:
    """The rule."""
    return contains


def contains(row: dict, answers: list[str]) -> list[float | None]:
    """Whether each answer has what is right in it."""
    value = row["answer"]
    wanted = [plain(str(item)) for item in (value if isinstance(value, list) else [value]) if item is not None]
    patterns = [_pattern(text) for text in wanted if text]
    if not patterns:
        return [None] * len(answers)
    return [float(any(pattern.search(plain(answer)) for pattern in patterns)) for answer in answers]


def _pattern(text: str) -> re.Pattern:
    before = _BEFORE_DIGIT if text[0].isdigit() else ""
    behind = _BEHIND_DIGIT if text[-1].isdigit() else ""
    return re.compile(rf"(?<!\w){before}{re.escape(text)}(?!\w){behind}")


def plain(text: str) -> str:
    """In one case and Unicode form, with single spaces, without marks around it."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(" .,;:!?\"'")
