"""The rule `contains`: 1 where the text of the column `answer` stands in an answer, else 0.

Both in one case, Unicode form and spacing; it must stand there as whole words, and a number as a whole number: 5 is not
in 1.5, 2,500 or -5. Scripts without spaces have no whole words: such a text may stand anywhere, and beside their
characters a word or a number is whole. So is one before Hangul, as particles and counters have no space before them.
A capital alone is the letter of an option: of an answer that is an option, that one, and else a capital in it; "a" is
an article, and so is A before a word where a sentence begins. Yes and no are what an answer begins with where it begins
with either. Of a list, any text does. None where the column has nothing to look for.
"""

import re
import unicodedata
from collections.abc import Callable

from data_engine.rules import values
from data_engine.rules.cells import values_in

# What a text that begins, or ends, with a digit would be a part of: a decimal, thousands, a number below 0; one with
# the word for 10^2, 10^3, 10^4 or 10^8 in Chinese, Japanese or Korean.
_BEFORE_DIGIT = r"(?<!\d[.,])(?<!(?<!\w)[-\u2212])"
_BEHIND_DIGIT = r"(?![.,]\d|[\u767e\ubc31\u5343\ucc9c\u4e07\u842c\ub9cc\u4ebf\u5104\uc5b5])"
_AROUND = " .,;:!?\"'"
# Han, kana, bopomofo; Thai, Lao, Burmese and Khmer.
_WITHOUT_SPACES = (
    "\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_HANGUL = "\u1100-\u11ff\u3131-\u318e\uac00-\ud7ff"
# A character of a word in a script with spaces; the second one where a word goes on.
_IN_WORD = rf"[^\W{_WITHOUT_SPACES}]"
_IN_WORD_BEHIND = rf"[^\W{_WITHOUT_SPACES}{_HANGUL}]"
_BEGINNING = 200
_LETTER = re.compile("[A-Z]")
# "A cat" where a sentence begins, and "I see", are words; "A is right" is an option.
_SENTENCE = r"""(?:^|(?<=[^\w\s,] )|(?<=\s\s)|(?<=["'“*(\[]))"""
_WORD_BEHIND = r" (?=\w\w)(?!(?:is|and|or|because|since|as)\b)"
_CAPITAL = re.compile(
    rf"(?<!{_IN_WORD})(?!{_SENTENCE}A{_WORD_BEHIND}|I(?:['’]|{_WORD_BEHIND}))[A-Z](?!{_IN_WORD_BEHIND})", re.MULTILINE
)
# "Yes/No" is neither.
_YES_NO = re.compile(r"\W*((?:yes|no|true|false)(?:\s*(?:/|or|and)\s*(?:yes|no|true|false))?)\b")
_STANDS_ALONE = re.compile(f"[{_WITHOUT_SPACES}]")


def make(collected: list) -> Callable[[dict, list[str]], list[float | None]]:
    """The rule."""
    return contains


def contains(row: dict, answers: list[str]) -> list[float | None]:
    """Whether each answer has what is right in it."""
    items = values_in(row["answer"])
    # A column of whole numbers of which some are missing is often stored as one of floats.
    items += [int(item) for item in items if isinstance(item, float) and item.is_integer()]
    checks = [_check(text) for text in map(str, items) if plain(text)]
    if not checks:
        return [None] * len(answers)
    return [float(any(check(answer) for check in checks)) for answer in answers]


def _check(wanted: str) -> Callable[[str], bool]:
    """Whether a text stands in an answer; the letter of an option, and yes or no, as what an answer begins with."""
    letter, wanted = wanted.strip(_AROUND), plain(wanted)
    if _LETTER.fullmatch(letter):
        return lambda answer: letter in (_option(answer) or _CAPITAL.findall(answer))
    pattern = _pattern(wanted)

    def stands_in(answer: str) -> bool:
        answer = plain(answer)
        first = _YES_NO.match(answer) if _YES_NO.fullmatch(wanted) else None
        return first[1] == wanted if first else pattern.search(answer) is not None

    return stands_in


def _option(answer: str) -> str:
    # With which it begins.
    return values.option(values.plain(answer[:_BEGINNING]))[0]


def _pattern(text: str) -> re.Pattern:
    before = _BEFORE_DIGIT if text[0].isdigit() else ""
    behind = _BEHIND_DIGIT if text[-1].isdigit() else ""
    before += "" if _STANDS_ALONE.match(text[0]) else rf"(?<!{_IN_WORD})"
    behind += "" if _STANDS_ALONE.match(text[-1]) else rf"(?!{_IN_WORD_BEHIND})"
    return re.compile(f"{before}{re.escape(text)}{behind}")


def plain(text: str) -> str:
    """In one case and Unicode form, with single spaces, without marks around it."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(_AROUND)
