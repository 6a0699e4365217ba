"""Texts with `<image>` where each picture stands, taken apart."""

from collections.abc import Iterable

PICTURE = "<image>"


def messages_of(turns: Iterable[tuple[str, str]], newline: bool = False) -> list[tuple[str, tuple[str | int, ...]]]:
    """Roles and texts as roles and parts; with `newline`, one line break behind each picture is not the text's."""
    number, messages = 0, []
    for role, text in turns:
        first, *others = text.split(PICTURE)
        parts: list[str | int] = [first]
        for piece in others:
            if newline and not piece.startswith("\n"):
                raise ValueError(f"a picture without a line break behind it: {text!r}")
            parts += [number, piece[1:] if newline else piece]
            number += 1
        messages.append((role, tuple(part for part in parts if part != "")))
    return messages
