"""Which tokens of a vocabulary are a word: found by encoding it, whatever the kind of tokenizer."""

from collections.abc import Callable, Sequence


def ids_of_words(
    encode: Callable[[str], list[int]], text: Callable[[list[int]], str], words: Sequence[str]
) -> list[int]:
    """Sorted ids of the tokens that are one of these words, with or without a space before it.

    `encode` gives the ids of a text alone, `text` that of ids, stripped. A tokenizer of SentencePiece's kind puts a
    space before a text, so that each word is encoded behind a line feed too.
    """
    lead, found = encode("\n"), set()
    for written in (spaced for word in words for spaced in (word, f" {word}")):
        behind = encode(f"\n{written}")
        rows = [encode(written), *([behind[len(lead) :]] if behind[: len(lead)] == lead else [])]
        found |= {row[0] for row in rows if len(row) == 1}
    return sorted(token for token in found if text([token]) in words)
