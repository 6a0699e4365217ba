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


def count_words(text: str) -> int:
    """Words and punctuation marks, as nltk.word_tokenize with an untrained Punkt; each CJK character is one word.

    Where every piece between spaces is PLAIN, this is the sum over the pieces, whose counts are cached. No rule of
    NLTK's word tokenizer spans a space, except that a full stop is split off only at the end of a sentence; and
    untrained Punkt, which knows no abbreviation, ends a sentence at each full stop that ends a plain piece, except
    after an INITIAL_OR_ORDINAL. Any other text is given to NLTK as a whole.
    """
    rest, characters = (text, 0) if text.isascii() else CJK.subn(" ", text)
    words = [*map(_words_of_plain, rest.replace("\n", " ").split(" "))]
    if None in words or INITIAL_OR_ORDINAL.search(rest):
        return characters + _nltk_words(rest)
    return characters + sum(words)


# NLTK takes 2 ms for a text of a hundred words, the cache a few microseconds: answers share most of their pieces.
@functools.lru_cache(maxsize=2**16)
def _words_of_plain(piece: str) -> int | None:
    """The number of words of a piece without spaces; None where it depends on the text around it."""
    if piece and not PLAIN.fullmatch(piece):
        return None
    return len(_tokenizers()[1].tokenize(piece))


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
