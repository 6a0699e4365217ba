"""How long a text is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_engine.words import count_words

GOLDENS = json.loads(Path(__file__).with_name("goldens").joinpath("pairing/word_counts.json").read_text())
CHINESE = "两只猫坐在沙发上。天空是蓝色的。"
# nltk 3.10 splits dashes off and treats apostrophes otherwise than 3.8, which made the goldens: (3.8, 3.10).
OTHER_IN_NEWER_NLTK = {
    "café façade naïve—dash… ellipsis...": (5, 7),
    "a/b c\\d e_f g-h i'j": (7, 5),
    "x=y+1; print('hi')": (7, 8),
    "'quoted' ''double'' `tick`": (8, 9),
}


# The Chinese text is a named difference: each CJK character is a word, see below.
@pytest.mark.parametrize(
    "golden", [one for one in GOLDENS if one["text"] != CHINESE], ids=lambda golden: golden["text"][:24]
)
def test_words_are_counted_as_nltk_counts_them_with_an_untrained_sentence_splitter(golden):
    expected = OTHER_IN_NEWER_NLTK.get(golden["text"], (golden["count_untrained_punkt"],))
    assert count_words(golden["text"]) in expected
    assert expected[0] == golden["count_untrained_punkt"]


def test_each_chinese_character_and_each_full_stop_is_a_word():
    # 8 + 6 characters, 2 full stops; one single "word" for nltk.
    assert count_words(CHINESE) == 16


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello 世界", 3),
        ("Hello世界", 3),
        ("世界, and more.", 6),
        # Eight kana and one Han character.
        ("これはりんごです木", 9),
        ("ㄅㄆ", 2),
        # Outside the basic plane.
        ("𠀀𠀁", 2),
        # Korean puts spaces between its words.
        ("고양이 두 마리", 3),
    ],
)
def test_scripts_without_spaces_are_counted_by_the_character_and_others_by_the_word(text, words):
    assert count_words(text) == words


def test_counting_needs_no_download():
    code = (
        "import nltk.data\n"
        "def refuse(*names, **options): raise AssertionError('wants data')\n"
        "nltk.data.load = nltk.data.find = refuse\n"
        "from data_engine.words import count_words\n"
        "print(count_words('One dog. Two cats.'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "6"


def test_counting_the_words_of_an_empty_text_gives_none():
    assert count_words("") == 0
    assert count_words(" \n") == 0
