"""Texts of answers as values: numbers, option letters, lists and words; and when two of them are the same.

Numbers are exact fractions. A unit, a percent sign or a currency counts only where both texts have one: nothing is
converted. What stands behind a number is read in units.py.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from data_engine.rules import latex, units
from data_engine.rules.units import COUNTS

# Beyond these, an exact number would be as long as the exponent says.
_MOST_EXPONENT, _MOST_DIGITS = 300, 300
# What is longer is no value: a model that repeats itself may write thousands of braces, whose ends are looked for.
_LONGEST = 2000
# Numbers that floats stand for agree no further.
_RELATIVE = Fraction(1, 10**9)

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_ASCII = str.maketrans("−‐‑‒–—﹣⁄‘’′“”", "-------/'''\"\"")
_DIGITS = (
    # 1,234,567.8 and 1.234.567,8; 1 234 567 and 1'234'567; then plain ones.
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d{1,3}(?:\.\d{3})+,\d+(?![\d.])|\d{1,3}(?:\.\d{3}){2,}(?![\d.])"
    r"|\d{1,3}(?:[ ']\d{3})+(?:\.\d+)?(?![\d/])|\d+\.?\d*|\.\d+"
)
_NUMBER = re.compile(
    rf"(?P<before>[$€£¥])?\s*(?P<sign>[+-])?\s*(?P<currency>[$€£¥])?\s*(?:"
    rf"(?P<whole>\d+)\s+(?P<over>\d+)\s*/\s*(?P<under>\d+)"
    rf"|(?P<top>{_DIGITS})\s*/\s*(?P<bottom>-?\d+(?:\.\d+)?)(?![\d.]*\s*(?:[/^]|\*\*))"
    rf"|(?:(?P<mantissa>{_DIGITS})(?:\s*[*x×·⋅]\s*|\s+))?10\s*(?:\^|\*\*)\s*[{{(]?\s*(?P<power>[+-]?\d+)\s*[}})]?"
    rf"|(?P<plain>{_DIGITS})(?:[eE](?P<exponent>[+-]?\d+))?"
    rf")\s*(?P<unit>.*)", re.DOTALL,
)  # fmt: skip
_OPTION = re.compile(
    r"(?:(?:option|choice|answer)s?\s+)?(?:[(\[]\s*([a-z])\s*[)\]]|([a-z]))"
    # "B (cat)"; "A (B)" may be either, and f (x) is none.
    r"(?:(?:\s*[.):,]\s*|\s+(?=\((?!\s*[a-z]\s*\))))(.*)|\s*)",
    re.DOTALL | re.IGNORECASE,
)
# "A, a cat" is an option with its text, or a list; "P (2, 3)" too, or a point.
_OPTION_OR_OTHER = re.compile(r"[^\w,]*[a-z](?:[^\w,]*,|\s+\()", re.IGNORECASE)
_BRACKETED = re.compile(r"[(\[]\s*[A-Za-z]\s*[)\]]\s+(.+)", re.DOTALL)
_OPENING = ("(", "[", "{")
_YES_NO = ("yes", "no", "true", "false")
# "Yes/No" is neither.
_FIRST_WORD = re.compile(r"\w*(?!\s*(?:/|or\b|and\b)\s*(?:yes|no|true|false)\b)")
_LEADS = re.compile(
    r"(?:the\s+)?(?:(?:final|correct|right|best)\s+)?(?:answer|option|choice)(?:\s+is\b|\s*[:=])\s*:?\s*", re.IGNORECASE
)
# x = 5, f(x) = 5, sin A = 5, m∠ABC ≈ 5, x ∈ [0, 1]; of "x = 2, y = 3" each item has its own name.
_NAMED = re.compile(
    r"(?:m?\s*∠\s*|(?=[^\W\d_]))((?:(?:sin|cos|tan)\s*∠?\s*)?\w+(?:\(\w\))?)\s*[=≈∈]\s*(?=[^\s=≈][^=≈]*$)"
)
_ROUNDED = re.compile(r"^(?:≈|(?:approximately|approx\.?|about|around|roughly)\s)\s*(?=[\d$€£¥+√π.-])", re.IGNORECASE)
# Of a product with a number, as in 5√2 cm, 36π and π/3; a unit stands apart from π, since 2πr has none.
_IRRATIONAL = re.compile(r"[*·×\s]*((?:π|√(?:\d+(?:\.\d+)?|\([^()]*\)))+)(?:/([1-9]\d*))?(?:\s+|$|(?<!π)(?=[a-zA-Z]))")
# "2 or 3" are two roots; "A or B" chooses none.
_JOIN = re.compile(r"(?:^|\s)(?:and\s|or\s(?=\W*\d|\w\s*=))")
_TERM = re.compile(r"[+-]?(?:[^-+(){}=<>≤≥≠→,;]|[({][^(){}]*[)}]|(?<=\^)-)+")
_FUNCTION_OF_WORD = re.compile(r"(?<![^\W\d_])(sin|cos|tan|ln|log)\((\w+)\)(?![\w^])")
# Also '90s; 5' and A' end in a sign.
_QUOTED = re.compile(r"""(["'])((?:(?!\1).)*)\1?""", re.DOTALL)


@dataclass(frozen=True)
class Number:
    """A number, with the unit behind it; "" without one."""

    value: Fraction
    unit: str
    is_unit: bool = True
    """else it is whatever stands behind the number, as in 2x + 1: two that have the same differ by their numbers"""
    irrational: str = ""
    """what the number is multiplied by: π, √2"""


def equal(right: str, answer: str) -> bool:
    """Whether an answer is the same as what is right."""
    if max(len(right), len(answer)) > _LONGEST:
        return words(right) == words(answer)
    (name, right), (other, answer) = _named(right), _named(answer)
    if not answer:
        return not right
    # y = 2 is not x = 2, but 2 is either.
    if name and other and name != other:
        return False
    return _same_value(right, answer) or _same_option(right, answer)


def plain(text: str) -> str:
    """A text without LaTeX, Markdown, quotes and what leads to the value; digits, minus and fractions as ASCII."""
    return _named(text)[1]


def _named(text: str) -> tuple[str, str]:
    """The name with which a text begins, as in x = 5, "" without one; and what `plain` makes of the text."""
    text = _SUPERSCRIPT.sub(lambda found: f"^{found[0].translate(_SUPERSCRIPTS)}", text)
    # NFKC makes "2½" "21⁄2": the whole stands apart.
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    # Of what looks like a degree sign, NFKC makes a letter.
    text = re.sub("[º˚]", "°", text)
    text = unicodedata.normalize("NFKC", text).translate(_ASCII).replace("''", '"')
    text = latex.as_plain(text)
    # Markdown's marks may have lost their other half; 10**5 is a power.
    text = re.sub(r"(?<!\w)\*\*(?=\S)|(?<=\S)\*\*(?![\w(+-])", "", re.sub(r"`(.+?)`", r"\1", text))
    # Dollars in pairs are LaTeX's; a single one is a currency.
    text = re.sub(r"\$\$?([^$]*)\$\$?", r"\1", text)
    text = " ".join(text.split()).strip()
    text = _LEADS.sub("", text, count=1) if _LEADS.match(text) else text
    name = _NAMED.match(text)
    text = _ROUNDED.sub("", text[name.end() :] if name else text).rstrip(".!;, ")
    quoted = _QUOTED.fullmatch(text)
    text = quoted[2].strip().rstrip(".!;, ") if quoted else text
    return "".join(name[1].casefold().split()) if name else "", text


def words(text: str) -> str:
    """The words of a plain text: in one case, without an article, and without spaces that tell nothing apart."""
    # The a of "a - 5" is no article.
    text = re.sub(r"^(?:a|an|the)\s+(?=[\w\"'$€£¥])", "", " ".join(text.casefold().split()))
    text = re.sub(r"\b([ap])\.m\b\.?", r"\1m", text)
    # "x > 3" is "x>3", and "π r" "πr", but "1, 234" is a list.
    text = re.sub(r" ?([^\w\s,;.]) ?", r"\1", text)
    text = re.sub(r"(?<![^\W\d_])([α-ω]) ", r"\1", text)
    text = _FUNCTION_OF_WORD.sub(r"\1 \2", text)
    # "300 K" is kelvin and "10K" a thousand, as numbers; in two texts that have the same letter it means the same.
    return re.sub(r"(?<=\d) (?=[^\W\d_])", "", text)


def number_of(text: str) -> Number | None:
    """The number with which a plain text begins, and what is behind it; None where it begins with none."""
    text = re.sub(r"^[({](.+)[)}]$", r"\1", text) if not re.search(r"[,;]", text) else text
    first, _, rest = text.partition(" ")
    text = f"{COUNTS.get(first.casefold(), first)} {rest}".strip()
    text = re.sub(r"^([+-]?\s*)(?=[π√])", r"\g<1>1", text)
    # The 1990s are no 1990 seconds.
    match = None if re.match(r"[12]\d\d0s\b", text) else _NUMBER.fullmatch(text)
    value = _value(match) if match is not None else None
    if value is None:
        return None
    value *= -1 if match["sign"] == "-" else 1
    product = _IRRATIONAL.match(match["unit"])
    end = match.start("unit") + (product.end() if product else 0)
    currency = match["before"] or match["currency"] or ""
    # $5 per hour is 5 $/hour.
    rest = re.sub(r"^(?:per |/ ?)(?=[^\W\d_])", f"{currency}/", text[end:]) if currency else text[end:]
    behind = units.read(rest, text[:end][-1:] != " ")
    if behind is None:
        return Number(value, words(match["unit"]), is_unit=False)
    factor, unit = behind
    unit = units.one_spelling(unit or currency)
    value *= factor / int(product[2] or 1) if product else factor
    return Number(value, unit, irrational=product[1] if product else "")


def _same_value(right: str, answer: str) -> bool:
    if words(right) == words(answer):
        numbers = number_of(right), number_of(answer)
        # 5 mW is no 5 MW.
        return None in numbers or units.same(*(number.unit for number in numbers))
    return any(same(right, answer) for same in (_same_number, _same_list, _same_sum, _same_word))


def _same_number(right: str, answer: str) -> bool:
    one, other = number_of(right), number_of(answer)
    if one is None or other is None or one.irrational != other.irrational:
        return False
    if not (one.is_unit and other.is_unit):
        return one.unit == other.unit and _close(one.value, other.value)
    percents = [number.unit == "%" for number in (one, other)]
    if percents[0] != percents[1]:
        # 50% is 0.5; and 50, where the other does not say what it counts.
        shares = [number.value / 100 if is_percent else number.value
                  for number, is_percent in zip((one, other), percents, strict=True)]  # fmt: skip
        plain_unit = (other if percents[0] else one).unit
        return not plain_unit and (_close(*shares) or _close(one.value, other.value))
    return _close(one.value, other.value) and units.same(one.unit, other.unit)


def _same_option(right: str, answer: str) -> bool:
    """A letter against a letter, whatever stands behind it; without one in what is right, what stands behind it."""
    (one, text), (other, said) = option(right), option(answer)
    if one and other:
        if one != other or _names_another(other, said):
            return False
        if _OPTION_OR_OTHER.match(right) and _OPTION_OR_OTHER.match(answer):
            return False
        # "x: 5" is no "x: 6".
        numbers = number_of(text), number_of(said)
        return None in numbers or _close(*(number.value for number in numbers))
    if one:
        return bool(text) and words(plain(text)) == words(answer)
    return bool(other and said) and _same_value(right, plain(said))


def option(text: str) -> tuple[str, str]:
    """The option letter with which a text begins, and the text behind it; "" without, and for several options."""
    listed = [_letter_and_text(item) for item in _items(text)[1]]
    # Each has its text, or none has: "B. x, y" is one option.
    if listed and all(letter for letter, _ in listed) and len({bool(said) for _, said in listed}) == 1:
        return "", ""
    return _letter_and_text(text)


def _names_another(letter: str, said: str) -> bool:
    """Whether more options follow one: "A. B. C.", "A) cat B) dog", "A, or B"; "D. A and C" is one."""
    following = re.escape(chr(ord(letter) + 1))
    another = rf"(?:^|\s)[(\[]?{following}(?:[)\]]|[.:]\s)|^(?:[a-z]\s+)?or\s"
    return re.search(another, said, re.IGNORECASE) is not None


def _letter_and_text(text: str) -> tuple[str, str]:
    match = _OPTION.fullmatch(text)
    if match is not None:
        return (match[1] or match[2]).upper(), (match[3] or "").strip()
    match = _BRACKETED.fullmatch(text)
    return (text.strip("([ ")[0].upper(), match[1].strip()) if match else ("", "")


def _same_list(right: str, answer: str) -> bool:
    """Item by item; in any order where what is right is in braces or in no brackets."""
    (brackets, items), (other, others) = _items(right), _items(answer)
    if len(items) != len(others) or not items:
        return False
    # Half-open intervals.
    if brackets != other and not {"[)", "(]"}.isdisjoint((brackets, other)):
        return False
    # "x = 2, y = 3" is "(2, 3)" in order; "x = 2, x = 3" has none.
    names = [{_named(item)[0] for item in many} - {""} for many in (items, others)]
    if brackets not in ("", "{}") or (len(names[0]) == len(items) and not names[1]):
        return all(map(equal, items, others))
    return _same_in_any_order(items, others)


def _same_in_any_order(items: list[str], others: list[str]) -> bool:
    left = list(others)
    for item in items:
        found = next((place for place, other in enumerate(left) if equal(item, other)), None)
        if found is None:
            return False
        del left[found]
    return True


def _items(text: str) -> tuple[str, list[str]]:
    """The brackets around a list, "" without, and its items; none where the text is no list."""
    if text.rfind("±") == 0:
        return "", [text[1:], f"-{text[1:]}"]
    is_bracketed = text[:1] in _OPENING and _closing(text) == len(text) - 1
    brackets, inner = (text[0] + text[-1], text[1:-1]) if is_bracketed else ("", text)
    parts, depth, start = [], 0, 0
    for place, character in enumerate(inner):
        # "A) cat, B) dog" closes what was not opened.
        depth = max(0, depth + _depth(character))
        if depth == 0 and character in ",;∪":
            parts.append(inner[start:place])
            start = place + 1
    parts.append(inner[start:])
    if not is_bracketed:
        parts = [piece for part in parts for piece in _JOIN.split(part)]
    items = [part.strip() for part in parts]
    # "red, and blue" has nothing before its "and".
    items = [item for item in items if item] if not is_bracketed else items
    return (brackets, items) if len(items) > 1 and all(items) else ("", [])


def _closing(text: str) -> int | None:
    """Where the bracket with which a text begins is closed, by one of any kind: [0, 1) is an interval."""
    depth = 0
    for place, character in enumerate(text):
        depth += _depth(character)
        if depth == 0:
            return place
    return None


def _depth(character: str) -> int:
    return (character in _OPENING) - (character in ")]}")


def _same_sum(right: str, answer: str) -> bool:
    """Term by term, in any order: 8+4√2 and 4√2+8."""
    terms, others = _terms(right), _terms(answer)
    # Without a plus it may be a date with hyphens.
    return 1 < len(terms) == len(others) and "+" in right + answer and _same_in_any_order(terms, others)


def _terms(text: str) -> list[str]:
    """The terms of a sum; none of what is no sum, as an equation."""
    text = words(text)
    found = _TERM.findall(text)
    return [term.removeprefix("+") for term in found] if "".join(found) == text else []


def _same_word(right: str, answer: str) -> bool:
    """Of yes and no, the first word counts: "Yes, there is one"."""
    first = _FIRST_WORD.match(answer.casefold())
    return words(right) in _YES_NO and first is not None and first[0] == words(right)


def _close(one: Fraction, other: Fraction) -> bool:
    return abs(one - other) <= _RELATIVE * max(abs(one), abs(other))


def _value(match: re.Match) -> Fraction | None:
    """The number of a match; None for one that is divided by zero, or too long to be exact."""
    if any(len(part) > _MOST_DIGITS for part in match.group("whole", "top", "mantissa", "plain") if part):
        return None
    power = match["power"] or match["exponent"] or "0"
    if len(power) > _MOST_DIGITS or abs(int(power)) > _MOST_EXPONENT:
        return None
    try:
        if match["whole"]:
            return int(match["whole"]) + Fraction(int(match["over"]), int(match["under"]))
        if match["top"]:
            return _digits(match["top"]) / Fraction(match["bottom"])
    except ZeroDivisionError:
        return None
    return _digits(match["mantissa"] or match["plain"] or "1") * Fraction(10) ** int(power)


def _digits(text: str) -> Fraction:
    """Digits with separators. A comma behind dots of thousands is a decimal comma; any other parts thousands."""
    text = re.sub(r"[ '’]", "", text)
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", text):
        text = text.replace(".", "").replace(",", ".")
    elif text.count(".") > 1:
        text = text.replace(".", "")
    return Fraction(text.replace(",", "").rstrip("."))
