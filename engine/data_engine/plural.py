"""Counts in sentences, which are read for the number 1 too."""


def plural(count: int, noun: str) -> str:
    """1, "pair" -> 1 pair; 1234, "pair" -> 1,234 pairs."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
