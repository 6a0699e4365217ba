"""The number of words of a text, by NLTK's rules. Needs no data beyond the nltk package."""

import functools
import re

# Scripts written without spaces between words: Han, kana, bopomofo. Korean has spaces and is counted like English.
CJK = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9d\U00020000-\U0003ffff]"
)
# A piece between two spaces that NLTK splits in the same way in every context: see count_words. Marks inside a word
# have a letter or digit on both sides, and only closing quotation marks follow a mark that may end a sentence.
PLAIN = re.compile(r"""[("“*]* \w (?: \w | [-'’/.,:](?=\w) )* [)"”*%]* (?: [.,;:?!] [)"]* )? | [-*&–—]""", re.VERBOSE)
# Punkt takes "J." for an initial, and "5." before a small letter for an ordinal: the sentence may go on.
INITIAL_OR_ORDINAL = re.compile(r"\b[^\W\d]\.[ \n]+[^ \n]|\d\.[ \n]+[^\W\d_A-Z]")
# The end of a plain piece that such a place can begin with.
MAY_GO_ON = re.compile(r"(?:\b[^\W\d]|\d)\.\Z")
# Where untrained Punkt ends a sentence whatever stands around it: a plain piece with a full stop, then a plain word.
BETWEEN_SENTENCES = re.compile(r"(?:\A|(?<=[ \n]))[A-Za-z]{2,}\.([ \n]+)(?=[A-Z][a-z]*[ \n])")
# Added to the words of a piece: for one that MAY_GO_ON, and for one that is not plain. No text has so many words.
LOOK, HARD = 1 << 32, 1 << 48


def count_words(text: str) -> int:
    """Words and punctuation marks, as nltk.word_tokenize with an untrained Punkt; each CJK character is one word.

    Where every piece between spaces is PLAIN, this is the sum over the pieces, whose counts are cached. No rule of
    NLTK's word tokenizer spans a space, except that a full stop is split off only at the end of a sentence; and
    untrained Punkt, which knows no abbreviation, ends a sentence at each full stop that ends a plain piece, except
    after an INITIAL_OR_ORDINAL. Of any other text, the sentences for which that does not hold are given to NLTK.
    """
    rest, characters = (text, 0) if text.isascii() else CJK.subn(" ", text)
    words = _words(rest)
    if words < LOOK or (words < HARD and not INITIAL_OR_ORDINAL.search(rest)):
        return characters + words % LOOK
    return characters + sum(map(_words_of_part, _parts(rest)))


def _words(text: str) -> int:
    """The sum over the pieces of a text, and LOOK and HARD for each that asks for it."""
    return sum(map(_words_of_piece, text.replace("\n", " ").split(" ")))


def _parts(text: str) -> list[str]:
    """A text cut between some of its sentences."""
    cuts = [match.end() for match in BETWEEN_SENTENCES.finditer(text)]
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _words_of_part(text: str) -> int:
    words = _words(text)
    if words < LOOK or (words < HARD and not INITIAL_OR_ORDINAL.search(text)):
        return words % LOOK
    return _nltk_words(text)


# NLTK takes 2 ms for a text of a hundred words, the cache a few microseconds: answers share most of their pieces.
@functools.lru_cache(maxsize=2**17)
def _words_of_piece(piece: str) -> int:
    """The number of words of a piece without spaces; HARD where it depends on the text around it."""
    if piece and not PLAIN.fullmatch(piece):
        return HARD
    return len(_tokenizers()[1].tokenize(piece)) + (LOOK if MAY_GO_ON.search(piece) else 0)


def _nltk_words(text: str) -> int:
    sentences, words, learned = _tokenizers()
    count = sum(len(words.tokenize(sentence)) for sentence in sentences.tokenize(text))
    # Punkt stores each word that it looks up, and would grow with every answer.
    learned.clear_ortho_context()
    return count


@functools.cache
def _tokenizers():
    # Imported here: nltk takes a second to import, which `data-engine status` does not need.
    from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer
    from nltk.tokenize.punkt import PunktParameters

    untrained = PunktParameters()
    return PunktSentenceTokenizer(untrained), NLTKWordTokenizer(), untrained
