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
# Two letters or more, and a mark that is split off. Of such words NLTK splits a few in two.
SIMPLE = re.compile(r"([A-Za-z]{2,})([.,;:?!]?)")
TWO_WORDS = frozenset(["cannot", "gimme", "gonna", "gotta", "lemme", "wanna"])
# Punkt takes "J." for an initial, and "5." before a small letter for an ordinal: the sentence may go on.
INITIAL_OR_ORDINAL = re.compile(r"\b[^\W\d]\.[ \n]+[^ \n]|\d\.[ \n]+[^\W\d_A-Z]")
# The end of a plain piece that such a place can begin with.
MAY_GO_ON = re.compile(r"(?:\b[^\W\d]|\d)\.\Z")
# Where a text can be cut without a change of the sum: behind a word without a mark, which ends no sentence; and behind
# one with a full stop before a plain word that begins with a capital, where untrained Punkt always ends one.
CUT = re.compile(r"(?:\A|(?<=[ \n]))[A-Za-z]{2,}(?:[ \n]+(?=\w)|\.[ \n]+(?=[A-Z][a-z]*[ \n]))")
# Added to the words of a piece: for one that MAY_GO_ON, and for one that is not plain. No text has so many words.
LOOK, HARD = 1 << 32, 1 << 48
MOST_PIECES = 2**17


def count_words(text: str) -> int:
    """Words and punctuation marks, as nltk.word_tokenize with an untrained Punkt; each CJK character is one word.

    Where every piece between spaces is PLAIN, this is the sum over the pieces, whose counts are cached. No rule of
    NLTK's word tokenizer spans a space, except that a full stop is split off only at the end of a sentence; and
    untrained Punkt, which knows no abbreviation, ends a sentence at each full stop that ends a plain piece, except
    after an INITIAL_OR_ORDINAL. Of any other text, the parts between two CUTs of which that does not hold are given to
    NLTK.
    """
    rest, characters = (text, 0) if text.isascii() else CJK.subn(" ", text)
    words = _sum_of_pieces(rest)
    return characters + (sum(map(_words_of_part, _parts(rest))) if words is None else words)


def _parts(text: str) -> list[str]:
    """A text cut at each CUT."""
    cuts = [match.end() for match in CUT.finditer(text)]
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _words_of_part(text: str) -> int:
    words = _sum_of_pieces(text)
    return _nltk_words(text) if words is None else words


def _sum_of_pieces(text: str) -> int | None:
    """The words of its pieces; None where the words of the text may be others."""
    words = sum(map(_pieces.__getitem__, text.replace("\n", " ").split(" ")))
    is_sum = words < LOOK or (words < HARD and not INITIAL_OR_ORDINAL.search(text))
    return words % LOOK if is_sum else None


def _words_of_piece(piece: str) -> int:
    """The number of words of a piece without spaces; HARD more where it depends on the text around it."""
    simple = SIMPLE.fullmatch(piece)
    if simple and simple[1].lower() not in TWO_WORDS:
        return 1 + len(simple[2])
    if piece and not PLAIN.fullmatch(piece):
        return HARD
    return len(_tokenizers()[1].tokenize(piece)) + (LOOK if MAY_GO_ON.search(piece) else 0)


class _Pieces(dict):
    """_words_of_piece of the pieces that were asked for last: answers share most of theirs, and NLTK is slow."""

    def __missing__(self, piece: str) -> int:
        if len(self) >= MOST_PIECES:
            self.clear()
        self[piece] = words = _words_of_piece(piece)
        return words


_pieces = _Pieces()


@functools.lru_cache(maxsize=2**14)
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
