"""Answers that say nearly the same: by the runs of ten words that two texts share."""

from collections.abc import Sequence

from data_engine.preferences.word_count import CJK

GRAM = 10


def near_duplicates(texts: Sequence[str], least: float) -> list[int]:
    """Positions of the texts whose similarity with an earlier one, which stays, is at least `least`.

    The similarity of two texts is the Jaccard index of their sets of 10-grams: grams in both / grams in any.
    """
    kept: list[frozenset] = []
    dropped = []
    for position, text in enumerate(texts):
        own = grams(text)
        if any(_similar(own, other, least) for other in kept):
            dropped.append(position)
        else:
            kept.append(own)
    return dropped


def grams(text: str) -> frozenset[str]:
    """The runs of ten words, split at spaces; each CJK character is a word. A shorter text is one gram as a whole."""
    words = (text if text.isascii() else CJK.sub(r" \g<0> ", text)).split()
    if len(words) < GRAM:
        return frozenset([" ".join(words)])
    return frozenset(map(" ".join, zip(*(words[start:] for start in range(GRAM)), strict=False)))


def _similar(one: frozenset, other: frozenset, least: float) -> bool:
    fewer, more = sorted((len(one), len(other)))
    # At most all of the smaller set are in both.
    if fewer < least * more:
        return False
    both = len(one & other)
    return both >= least * (fewer + more - both)
