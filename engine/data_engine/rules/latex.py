"""Formulas of LaTeX as plain text: fractions, roots, signs and the words of \\text{...}."""

import re
import unicodedata

_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf)|operatorname|mbox|emph|bm|boxed|fbox)(?![a-zA-Z])"
)
_COMMAND = re.compile(r"\\[a-zA-Z]+$")
_FRACTION = re.compile(r"\\[dtc]?frac\s*")
# A sum or a fraction; a sign behind ^ is the exponent's.
_SUM = re.compile(r"[^\s^]\s*(?:[+/±∓-]|\\(?:pm|mp)(?![a-zA-Z]))")
# 2x, 2\pi, x(x+1) and a \cdot b, where @ is a bracket; a word such as km or s^2 may be a unit.
_PRODUCT = re.compile(r"\d\s*[^\W\d_]|(?:[^\W_]|@)\s*(?:[@√π]|\\[^%])|\\[a-zA-Z]+\s+\w|[*·×]")
# 10{,}000
_DIGITS = re.compile(r"[\d\s.,{}\\!]*")
_BRACKET = re.compile(r"[({][^(){}]*[)}]")
_ROOT = re.compile(r"\\sqrt(?![a-zA-Z]|\s*\[)")
_ROOT_OF_BRACKET = re.compile(r"(?:√|(?<![^\W\d_\\])sqrt)\s*[({]([^(){}]*)[)}]")
_MATRIX = re.compile(r"\\begin\{([pbB]?|small)matrix\}(.*?)\\end\{\1matrix\}", re.DOTALL)
_PLAIN = (
    (re.compile(r"\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[()\[\]!]"), ""), (re.compile(r"\\[,;:> ]|\\quad\b|\\qquad\b|(?<!\\)~"), " "),
    (re.compile(r"\^\s*\{?\s*\\circ(?:\s*\})?"), "°"),
    (re.compile(r"<="), "≤"), (re.compile(r">="), "≥"), (re.compile(r"!="), "≠"),
    (re.compile(r"(?<![^\W\d_\\])(?i:pi)(?![^\W\d_])"), "π"),
    # cm^{2} is cm^2, and x^{2y} not x^2y.
    (re.compile(r"\^\s*\{\s*(-?\d+|\w|\d*[+-])\s*\}"), r"^\1"), (re.compile(r"_\s*\{\s*(\w+)\s*\}"), r"_\1"),
    # H_2O, and the base of log_2 8, but not that of 2516_8; Na^+ and Ca^2+.
    (re.compile(r"(?<=[^\W\d_]|\))_(?=\d)"), ""), (re.compile(r"(?<=[\w)\]])\^(?=\d?[+-](?:$|[\s,;)\]]))"), ""),
    (re.compile(r"\\([%$_{}])"), r"\1"), (re.compile(r"\{,\}"), ","),
)  # fmt: skip
_SIGNS = """
    pi π times * cdot * pm ± mp ∓ le ≤ leq ≤ leqslant ≤ ge ≥ geq ≥ geqslant ≥ ne ≠ neq ≠ approx ≈ angle ∠ degree °
    infty ∞ cup ∪ cap ∩ in ∈ emptyset ∅ varnothing ∅ perp ⊥ parallel ∥ triangle △ to → rightarrow →
""".split()  # noqa: SIM905
_SIGNS = dict(zip(_SIGNS[::2], _SIGNS[1::2], strict=True))
_FUNCTION = re.compile(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp|max|min|lim|gcd|det")


def as_plain(text: str) -> str:
    """A text with what LaTeX writes as commands in characters: \\frac{1}{2} as 1/2, \\sqrt{2} as √2, \\leq as ≤."""
    text = _MATRIX.sub(lambda found: f"(({found[2]}))".replace(r"\\", "),(").replace("&", ","), text)
    text = re.sub(r"\\([a-zA-Z]+)(\s*)(_?)", _without_backslash, _fractions(_roots(_unwrapped(text))))
    for pattern, other in _PLAIN:
        text = pattern.sub(other, text)
    return text


def _without_backslash(found: re.Match) -> str:
    """\\leq as ≤, \\theta as θ and \\sin as sin; any other command as it is."""
    name, space, below = found.groups()
    if name in _SIGNS:
        return _SIGNS[name] + space + below
    if _FUNCTION.fullmatch(name):
        return name + (below or " ")
    size = "CAPITAL" if name[0].isupper() else "SMALL"
    letter = name.removeprefix("var").upper().replace("LAMBDA", "LAMDA")
    try:
        return unicodedata.lookup(f"GREEK {size} LETTER {letter}") + below
    except KeyError:
        return found[0]


def inside_braces(text: str) -> str | None:
    """What stands in the braces with which a text begins, nested ones included; None without their end."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:place] if place else None
    return None


def _unwrapped(text: str) -> str:
    """Without \\text{...} and the like, whose content stays."""
    while match := _WRAPPED.search(text):
        behind = text[match.end() :].lstrip()
        inner = inside_braces(behind) if behind.startswith("{") else None
        rest = behind[len(inner) + 2 :] if inner is not None else behind
        before = text[: match.start()]
        # 36\pi\text{cm} has no command \picm.
        space = " " if inner and inner[0].isalpha() and _COMMAND.search(before) else ""
        text = f"{before}{space}{inner or ''}{rest}"
    return text


def _roots(text: str) -> str:
    """\\sqrt{2}, \\sqrt2, sqrt(2) and √(2) as √2; brackets stay around more than a number or a letter."""
    while match := _ROOT.search(text):
        inner, rest = _argument(text[match.end() :])
        text = f"{text[: match.start()]}√({inner}){rest}"
    text = _ROOT_OF_BRACKET.sub(lambda found: f"√{_bracketed(found[1].strip())}", text)
    return re.sub(r"√\s+", "√", text)


def _bracketed(text: str) -> str:
    return text if re.fullmatch(r"[\d.]+|\w", text) else f"({text})"


def _fractions(text: str) -> str:
    """\\frac{1}{2}, \\frac12 and \\frac1{2} as 1/2; a whole number before it stands apart, a sum in brackets, and below
    the line a product.
    """
    while match := _FRACTION.search(text):
        top, rest = _argument(text[match.end() :])
        bottom, rest = _argument(rest)
        top, bottom = _factor(_fractions(top), [_SUM]), _factor(_fractions(bottom), [_SUM, _PRODUCT])
        before = text[: match.start()].rstrip()
        space = " " if before[-1:].isdigit() else ""
        # \frac{2}{x}y is not \frac{2}{xy}.
        gap = " " if bottom[-1:].isalpha() and rest[:1].isalpha() else ""
        text = f"{before}{space}{top}/{bottom}{gap}{rest}"
    return text


def _factor(text: str, not_alone: list[re.Pattern]) -> str:
    """A part of a fraction, in brackets where outside of its own brackets is what may not stand alone."""
    if _DIGITS.fullmatch(text):
        return text
    bare, inner = text, None
    while bare != inner:
        bare, inner = _BRACKET.sub("@", bare), bare
    return f"({text})" if any(pattern.search(bare) for pattern in not_alone) else text


def _argument(text: str) -> tuple[str, str]:
    """An argument of a command of LaTeX, in braces or one character, and what is behind it."""
    text = text.lstrip()
    inner = inside_braces(text) if text.startswith("{") else None
    return (inner.strip(), text[len(inner) + 2 :]) if inner is not None else (text[:1], text[1:])
