"""What stands behind a number: words that multiply it, such as million, and a unit. Algebra, as in 3n-1, is neither."""

import re
from fractions import Fraction

_COUNTS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
COUNTS = {word: str(number) for number, word in enumerate(_COUNTS.split())}
COUNTS |= {word: str(10 * number) for number, word in enumerate(_TENS.split(), 3)}
"""numbers in words -> digits"""

_TIMES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
_ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth"
_PARTS = {word: Fraction(1, number) for number, word in enumerate(_ORDINALS.split(), 3)}
_PARTS |= {"half": Fraction(1, 2), "halve": Fraction(1, 2), "hundredth": Fraction(1, 100)}
_PARTS |= {"thousandth": Fraction(1, 1000)}
# Two third graders are no two thirds.
_FACTOR = re.compile(rf"(?:({'|'.join(_TIMES)})s?(?![\w^-])|({'|'.join(_PARTS)})s?(?=$| of )) ?", re.IGNORECASE)
# 10K and 3M: 300 K are kelvins, and 3m meters. Behind those of Chinese, Japanese and Korean no space is needed.
_SIGN_FACTORS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_SIGN_FACTORS |= dict.fromkeys("万萬만", 10**4) | dict.fromkeys("亿億억", 10**8)
_SIGN_FACTOR = re.compile(r"([kKMB])(?: |$)|([万萬만亿億억]) ?")

# Words, one with a hyphen among them, and exponents: J/(kg·K), m^2, L/100km.
_PART = r"[^\W\d_]+(?:-[^\W\d_]{3,})*"
_POWER = r"(?:(?:\^|\*\*)[({]?-?\d+[)}]?|\d)?"
_FIRST, _NEXT = rf"(?:[°$€£¥%]?{_PART}{_POWER}|[°$€£¥%])", rf"[/*·.]\(?(?:\d*{_PART}{_POWER}|[°%])"
_UNIT = re.compile(rf"{_FIRST}(?:{_NEXT})*\)?(?:\(s\))?")
# Two more words.
_MORE = re.compile(r"(?: (?:[^\W\d_]|[°%/])[^\s\d,;]*){0,2}")
# Letters that stand for numbers in algebra; those of other scripts do not.
_ALGEBRAIC = re.compile("[A-Za-zα-ωΑ-Ω]+")
_LETTERS = frozenset("mglLshKCFNVWAJTΩ")
# Beside a number without a space, as in 5cm, two or three letters are a unit only where it is known: 2ab is a product.
_SHORT = frozenset(
    "mm cm dm km nm µm um mi ft yd in au ly ha sq mg µg kg lb lbs oz ml cl dl µl gal qt cc fl ms ns µs us sec min "
    "hr hrs yr yrs day wk mo hz khz mhz ghz pa kpa mpa bar atm psi mw kw gw wh kwh hp mv kv ma µa mah kω mω µc µf "
    "kj mj btu ev kev mev cal kn mol ppm ppb kb mb gb tb bit px pt pts db dpi rpm bpm mph kph kmh fps usd eur gbp "
    "jpy deg rad am pm st nd rd th".replace("µ", "μ").split()
)
# Whose letters alone are none, or which have a dot.
_WHOLE = frozenset(("a.m", "p.m", "°c", "°f"))
_ALGEBRA = "arc sin cos tan cot csc log ln exp sqrt pi mod squared cubed factorial plus minus and or"
_NO_UNITS = frozenset((*COUNTS, *_ALGEBRA.split()))
# 2sinx, without a space.
_FUNCTION = re.compile("arc|sin|cos|tan|cot|csc|log|ln|exp|sqrt|pi")
_SAME = {
    "$": "dollar", "usd": "dollar", "€": "euro", "eur": "euro", "£": "pound", "¥": "yen", "%": "percent",
    "per cent": "percent", "°": "degree", "deg": "degree", "°c": "c", "°f": "f", "mm": "millimeter",
    "cm": "centimeter", "m": "meter", "km": "kilometer", "mg": "milligram", "g": "gram", "kg": "kilogram",
    "ml": "milliliter", "l": "liter", "s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour",
    "inch": "in", "foot": "ft", "feet": "ft", "yr": "year",
}  # fmt: skip


def read(text: str, is_attached: bool) -> tuple[Fraction, str] | None:
    """What a number is multiplied by, and its unit, "" without one; None where neither is all that stands behind it.

    `is_attached`: no space stands between them.
    """
    factor = Fraction(1)
    if is_attached and (match := _SIGN_FACTOR.match(text)):
        factor, text, is_attached = Fraction(_SIGN_FACTORS[match[1] or match[2]]), text[match.end() :], False
    while match := _FACTOR.match(text):
        word = (match[1] or match[2]).lower()
        factor, text, is_attached = factor * (_TIMES | _PARTS)[word], text[match.end() :], False
    return (factor, text) if not text or _is_unit(text, is_attached) else None


def one_spelling(text: str) -> str:
    """A unit in one spelling: singular, and by its name where it has a common abbreviation."""
    text = re.sub(r"\s+", " ", text.casefold().strip(" .")).replace("μ", "µ").replace("**", "^")
    text = _SAME.get(text, text)
    text = re.sub(r"(?<=\w\w)s$|(?<=s|x|z|h)es$", "", text) if not text.endswith("ss") else text
    text = text.replace("metre", "meter").replace("litre", "liter")
    return _SAME.get(text, text)


def _is_unit(text: str, is_attached: bool) -> bool:
    """Whether a text is a unit of at most three words, of which the first may have exponents."""
    first, space, rest = text.partition(" ")
    # "two hundred fifty" is no 200 of a unit.
    if _MORE.fullmatch(space + rest) is None or _NO_UNITS.intersection(text.casefold().split()):
        return False
    if first.casefold() in _WHOLE:
        return True
    parts = re.findall(_PART, first)
    return _UNIT.fullmatch(first) is not None and all(_is_part(part, is_attached) for part in parts)


def _is_part(word: str, is_attached: bool) -> bool:
    """Whether a word of letters may be, or be a part of, a unit."""
    if _ALGEBRAIC.fullmatch(word) is None:
        return not is_attached or "-" not in word
    if len(word) == 1:
        return word in _LETTERS
    return not is_attached or word.casefold() in _SHORT or (len(word) > 3 and _FUNCTION.match(word) is None)
