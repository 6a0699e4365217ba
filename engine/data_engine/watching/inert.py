"""Text that others wrote, such as warnings that quote a dataset, made fit for a terminal: it cannot steer one."""

import unicodedata

# Marks that stack on a letter, such as accents; more of them would reach into the lines above and below.
_MOST_MARKS = 2


def inert(text: str, encoding: str = "utf-8") -> str:
    """The text on one line; what steers a terminal, turns the direction of writing or has no width is escaped.

    So is what `encoding` cannot show.
    """
    shown, marks = [], 0
    for letter in " ".join(text.split()):
        marks = marks + 1 if unicodedata.category(letter) in ("Mn", "Me") else 0
        if marks <= _MOST_MARKS:
            # Control characters, formats (those of direction among them) and surrogates are not printable.
            shown.append(letter if letter.isprintable() else _escaped(letter))
    return "".join(shown).encode(encoding, "backslashreplace").decode(encoding)


def _escaped(letter: str) -> str:
    number = ord(letter)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
