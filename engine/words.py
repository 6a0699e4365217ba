"""How long a text is: a string in, its number of words out. Needs no data beyond the nltk package."""

import functools
import re

# Scripts written without spaces between words: Han, kana, bopomofo. Korean puts spaces, so its words count as others.
CJK = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9d\U00020000-\U0003ffff]"
)


@functools.cache
def _tokenizers():
    # Here, because importing nltk takes a second that `data-engine status` need not spend.
    from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer

    return PunktSentenceTokenizer(), NLTKWordTokenizer()


def count_words(text: str) -> int:
    """Words and punctuation marks, as nltk.word_tokenize with an untrained Punkt; each CJK character is one word."""
    sentences, words = _tokenizers()
    rest, characters = CJK.subn(" ", text)
    return characters + sum(len(words.tokenize(sentence)) for sentence in sentences.tokenize(rest))
