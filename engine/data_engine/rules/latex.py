"""Formulas of LaTeX as plain text: fractions, roots, signs and the words of \\text{...}."""

import re

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
_PLAIN = (
    (re.compile(r"\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[()\[\]]"), ""), (re.compile(r"\\[,;:!> ]|\\quad\b|\\qquad\b|(?<!\\)~"), " "),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "*"), (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b"), "°"),
    # cm^{2} is cm^2, and x^{2y} not x^2y.
    (re.compile(r"([\^_])\s*\{\s*(\w)\s*\}"), r"\1\2"),
    (re.compile(r"\\%"), "%"), (re.compile(r"\\\$"), "$"), (re.compile(r"\\_"), "_"), (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\\{"), "{"), (re.compile(r"\\\}"), "}"),
    (re.compile(r"\\pi\b|(?<![^\W\d_\\])(?i:pi)(?![^\W\d_])"), "π"),
    (re.compile(r"\\leq?(?:slant)?(?![a-zA-Z])|<="), "≤"), (re.compile(r"\\geq?(?:slant)?(?![a-zA-Z])|>="), "≥"),
    (re.compile(r"\\neq?(?![a-zA-Z])|!="), "≠"), (re.compile(r"\\approx(?![a-zA-Z])"), "≈"),
    (re.compile(r"\\angle(?![a-zA-Z])"), "∠"),
)  # fmt: skip


def as_plain(text: str) -> str:
    """A text with what LaTeX writes as commands in characters: \\frac{1}{2} as 1/2, \\sqrt{2} as √2, \\leq as ≤."""
    text = _fractions(_roots(_unwrapped(text)))
    for pattern, other in _PLAIN:
        text = pattern.sub(other, text)
    return text


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
