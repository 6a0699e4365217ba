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
COUNTS |= {f"{ten}-{one}": COUNTS[ten][0] + COUNTS[one]
           for ten in ("twenty", *_TENS.split()) for one in _COUNTS.split()[1:10]}  # fmt: skip
"""numbers in words -> digits"""

_TIMES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "lakh": 10**5, "crore": 10**7, "bn": 10**9,
}  # fmt: skip
_ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth"
_PARTS = {word: Fraction(1, number) for number, word in enumerate(_ORDINALS.split(), 3)}
_PARTS |= {"quarter": Fraction(1, 4), "half": Fraction(1, 2), "halve": Fraction(1, 2), "hundredth": Fraction(1, 100)}
_PARTS |= {"thousandth": Fraction(1, 1000)}
# Two third graders are no two thirds.
_FACTOR = re.compile(rf"(?:({'|'.join(_TIMES)})s?(?![\w^-])|({'|'.join(_PARTS)})s?(?=$| of )) ?", re.IGNORECASE)
# 10K and 3M: 300 K are kelvins, and 3m meters. Behind those of Chinese, Japanese and Korean no space is needed.
_SIGN_FACTORS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_SIGN_FACTORS |= dict.fromkeys("百백", 10**2) | dict.fromkeys("千천", 10**3)
_SIGN_FACTORS |= dict.fromkeys("万萬만", 10**4) | dict.fromkeys("亿億억", 10**8)
_SIGN_FACTOR = re.compile(r"([kKMB])(?: |$)|([百백千천万萬만亿億억]) ?")

# A word of a unit, with what compounds and exponents are written by: J/(kg·K), m^2, sq., U.S.
_WORD = r"(?:[^\W\d_]|[°%$€£¥'\"])[\w°%'\"/^*().·-]*"
_UNIT = re.compile(rf"{_WORD}(?: (?:[^\W\d_]|[°%/])(?:\^-?\d|[^\s\d,;])*){{0,2}}")
# A number is taken off or multiplied: 3n-1, 2m*3. Not so m^-1 and m**2.
_COUNTED = re.compile(r"(?<![\^({*])[-*]\d|\+")
_LEADING = re.compile(r"[^\W\d_]*")
# A date, a time, a fraction, a height or an angle goes on behind it: 3月5日, 5時30分, 3分の1, 5'10", 30°15'.
_GOES_ON = re.compile(r"['\"°\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff]\d")
# Letters that stand for numbers in algebra; those of other scripts do not.
_ALGEBRAIC = re.compile("[A-Za-zα-ωΑ-Ω]+")
_LETTERS = frozenset("mglLshKCFNVWAJTΩ")
# Beside a number without a space, as in 5cm, two or three letters are a unit only where it is known: 2ab is a product.
_BASES = "m g s A K N J W C V F Ω S T H L l Hz Pa Wb lm lx Bq Gy Sv eV Wh Ah mol cal bar"
_OTHERS = (
    "km mi ft yd in au ly ha sq lb oz gal qt cc fl ltr us sec min hr yr day wk mo hz khz mhz ghz pa kpa mpa bar atm "
    "psi mw kw gw wh kwh hp kv ma mah btu ev kev mev cal kn ppm ppb kb mb gb tb bit px pt pc br db dpi rpm bpm mph "
    "kph kmh fps usd eur gbp jpy inr rs deg rad am pm st nd rd th"
)
_SHORT = frozenset(prefix + base for prefix in ("", *"fpnμumcdkMGT") for base in _BASES.split())
_SHORT |= frozenset(_OTHERS.split())
# In words, as the first behind a number; 2 sqrt(3) and 2sinx.
_FUNCTIONS = ["arc", "sin", "cos", "tan", "cot", "csc", "log", "ln", "exp", "sqrt", "pi", "mod"]
_FUNCTION = re.compile("|".join(_FUNCTIONS))
_NO_UNITS = frozenset((*COUNTS, *_FUNCTIONS, *["squared", "cubed", "factorial", "plus", "minus", "and", "or"]))
# "two hundred fifty" is no 200 of a unit, and "5 and a half" no 5.
_NOT_BEHIND = frozenset((*COUNTS, "and", "or", "plus", "minus"))
_PREFIXES = {
    "pico": "p", "nano": "n", "micro": "µ", "milli": "m", "centi": "c", "deci": "d", "hecto": "h", "kilo": "k",
    "mega": "M", "giga": "G", "tera": "T",
}  # fmt: skip
_NAMES = {
    "meter": "m", "metre": "m", "gram": "g", "liter": "l", "litre": "l", "second": "s", "sec": "s", "hertz": "Hz",
    "ampere": "A", "amp": "A", "volt": "V", "watt": "W", "ohm": "Ω", "farad": "F", "newton": "N", "joule": "J",
    "pascal": "Pa", "kelvin": "K", "coulomb": "C", "tesla": "T", "henry": "H", "electronvolt": "eV", "calorie": "cal",
    "mole": "mol", "bel": "B", "byte": "B", "bit": "bit",
}  # fmt: skip
_NAMED = re.compile(rf"({'|'.join(_PREFIXES)})?({'|'.join(_NAMES)})")
_SAME = {
    "usd": "$", "dollar": "$", "eur": "€", "euro": "€", "gbp": "£", "yen": "¥", "percent": "%", "degree": "°",
    "deg": "°", "celsius": "c", "fahrenheit": "f", "inch": "in", "foot": "ft", "feet": "ft", "mile": "mi",
    "yard": "yd", "ounce": "oz", "gallon": "gal", "quart": "qt", "minute": "min", "hour": "h",
    "hr": "h", "yr": "year", "mph": "mi/h", "kmph": "km/h", "kph": "km/h", "cc": "cm^3", "kilo": "kg", "radian": "rad",
}  # fmt: skip
# Signs and words of several units.
_EITHER = {"'": ("ft", "min"), '"': ("in", "s"), "°": ("c", "f"), "pound": ("£", "lb")}
# The case tells mega from milli.
_MEGA_OR_MILLI = re.compile("[mM](?:W|V|A|J|N|C|F|H|T|Ω|Hz|Pa|eV)")
_SPELLINGS = (
    (re.compile(r"\bper cent\b", re.IGNORECASE), "%"), (re.compile(r"\*\*"), "^"),
    (re.compile(r"\b([kmgt]?w)h\b", re.IGNORECASE), r"\1 h"),
    (re.compile(r" ?[·*] ?|-(?=[^\W\d_])"), " "), (re.compile(r" ?([/^()]) ?"), r"\1"),
    (re.compile(r"(?<=\w) (?:old|long|tall|high|wide|deep|away)$", re.IGNORECASE), ""),
    (re.compile(r"(?:°|\bdeg(?:rees?)?\b) ?(?=(?:c|f|celsius|fahrenheit)\b)", re.IGNORECASE), ""),
    (re.compile(r"\b(?:square|sq)\b\.? ?([^\W\d_]+)\.?", re.IGNORECASE), r"\1^2"),
    (re.compile(r"\b(?:cubic|cu)\b\.? ?([^\W\d_]+)\.?", re.IGNORECASE), r"\1^3"),
    (re.compile(r" squared\b", re.IGNORECASE), "^2"), (re.compile(r" cubed\b", re.IGNORECASE), "^3"),
    (re.compile(r"(?<=[^\W\d_])(?=[23]\b)"), "^"),
    (re.compile(r" ?\b([^\W\d_]+)\^-(\d)"), r"/\1^\2"), (re.compile(r"\^1\b"), ""),
)  # fmt: skip
_LETTERS_OR_SIGN = re.compile(r"[^\W\d_]+|[^\w\s]")


def read(text: str, is_attached: bool) -> tuple[Fraction, str] | None:
    """What a number is multiplied by, and its unit, "" without one; None where neither is all that stands behind it.

    `is_attached`: no space stands between them.
    """
    factor, text = Fraction(1), re.sub(r"(?<=\w) per (?!cent)", "/", text)
    # 3千万 has two.
    while is_attached and (match := _SIGN_FACTOR.match(text)):
        factor, text = factor * _SIGN_FACTORS[match[1] or match[2]], text[match.end() :]
        is_attached = match[2] is not None and not match[0].endswith(" ")
    while match := _FACTOR.match(text):
        word = (match[1] or match[2]).lower()
        factor, text, is_attached = factor * (_TIMES | _PARTS)[word], text[match.end() :], False
    return (factor, text) if not text or _is_unit(text, is_attached) else None


def one_spelling(text: str) -> str:
    """A unit in one spelling: its words in the singular, and as symbols where they have a common one."""
    text = re.sub(r"\s+", " ", text.strip(" .")).replace("μ", "µ")
    for pattern, other in _SPELLINGS:
        text = pattern.sub(other, text)
    return _LETTERS_OR_SIGN.sub(lambda found: _symbol(found[0]), text)


def same(one: str, other: str) -> bool:
    """Whether two units in one spelling are the same; one without a unit may have any."""
    if one == other or not (one and other) or other in _EITHER.get(one, ()) or one in _EITHER.get(other, ()):
        return True
    # Of one in small letters the case says nothing: mw.
    folded = one.casefold()
    return folded == other.casefold() and folded in (one, other)


def _symbol(word: str) -> str:
    lower = word.casefold()
    if lower not in _SAME and not lower.endswith("ss"):
        lower = re.sub(r"(?<=\w\w)s$|(?<=s|x|z|h)es$", "", lower)
    name = _NAMED.fullmatch(lower)
    symbol = _PREFIXES.get(name[1], "") + _NAMES[name[2]] if name else word
    if _MEGA_OR_MILLI.fullmatch(symbol):
        return symbol
    return symbol.casefold() if name else _SAME.get(lower, lower)


def _is_unit(text: str, is_attached: bool) -> bool:
    """Whether a text is a unit of at most three words."""
    first, *others = text.casefold().split()
    if (
        _UNIT.fullmatch(text) is None
        or _COUNTED.search(text)
        or _GOES_ON.search(text)
        or not _NOT_BEHIND.isdisjoint(others)
    ):
        return False
    letters = _LEADING.match(text)[0]
    if not letters or _ALGEBRAIC.fullmatch(letters) is None or first.rstrip(".") in ("a.m", "p.m"):
        return True
    # 2πr, also where r is a word.
    if letters.casefold() in _NO_UNITS or letters.startswith("π"):
        return False
    if not is_attached and len(letters) == 1:
        # T-shirts, but t is a number.
        return letters in _LETTERS or letters.isupper() or re.match("[a-z]-[a-z]{3}", first) is not None
    if not is_attached or letters in _LETTERS:
        return True
    if len(letters) > 3:
        return _FUNCTION.match(letters) is None
    # One or several: kgs.
    forms = (letters, letters.casefold(), letters.removesuffix("s"), letters.casefold().removesuffix("s"))
    return not _SHORT.isdisjoint(forms)
