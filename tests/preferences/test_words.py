"""How long a text is."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer

from data_engine.demo.world import DESCRIBE_TEMPLATES, FILLERS, Caption, render
from data_engine.preferences import word_count
from data_engine.preferences.word_count import CJK, count_words

GOLDENS = json.loads(Path(__file__).parents[1].joinpath("goldens", "pairing/word_counts.json").read_text())
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
        "from data_engine.preferences.word_count import count_words\n"
        "print(count_words('One dog. Two cats.'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "6"


def test_counting_the_words_of_an_empty_text_gives_none():
    assert count_words("") == 0
    assert count_words(" \n") == 0


SENTENCES, WORDS = PunktSentenceTokenizer(), NLTKWordTokenizer()


def count_by_nltk(text: str) -> int:
    """Every text through both of NLTK's tokenizers: the definition."""
    rest, characters = CJK.subn(" ", text)
    return characters + sum(len(WORDS.tokenize(sentence)) for sentence in SENTENCES.tokenize(rest))


def golden_answers(golden_rows: list[dict]) -> list[str]:
    tables = json.loads(Path(__file__).parents[1].joinpath("goldens", "pairing/reward_tables.json").read_text())
    answers = [row["chosen"] for table in tables for row in table["rows"]]
    return list(dict.fromkeys([*answers, *(row["chosen"] for row in golden_rows), *(one["text"] for one in GOLDENS)]))


def demo_answers() -> list[str]:
    """Every form that an answer of the demo's world can take."""
    names = [("red circle",), ("red circle", "blue square"), ("red circle", "blue square", "green cross")]
    forms = itertools.product(range(len(DESCRIBE_TEMPLATES)), range(len(FILLERS)))
    captions = [Caption(*form, own, count) for form in forms for own in names for count in (None, 1, 3)]
    return [render(caption) for caption in captions]


def test_golden_and_demo_answers_have_as_many_words_as_by_nltk_alone(golden_rows):
    answers = golden_answers(golden_rows) + demo_answers()
    assert len(answers) > 1000
    assert [count_words(answer) for answer in answers] == [count_by_nltk(answer) for answer in answers]


def test_nearly_all_answers_are_counted_without_nltk(golden_rows, monkeypatch):
    answers, slow = golden_answers(golden_rows) + demo_answers(), []
    monkeypatch.setattr(word_count, "_nltk_words", lambda text: slow.append(text) or 0)
    for answer in answers:
        count_words(answer)
    # the goldens' 96 strings are made to be hard, and their other answers break off anywhere
    assert len(slow) < len(answers) / 10


HARD = (
    # abbreviations, initials, ordinals and numbers, before small and large letters
    "e.g i.e U.S Mr J j x-J x:J x'J 5 3.5 3,000 10:30 1st v2.0 ² ٣ The the é Émile İ ſ я _ "
    # contractions and quotes
    "cannot can't n't N'T it's IT'S dogs' 'tis d'ye more'n gimme Gonna wanna wanna-be couldn't've x'll's "
    # marks, dashes, ellipses, other scripts
    "' '' \" ` `` “ ” ‘ ’ « » ( ) [ ] { } < > * ** & % $ # @ / \\ - -- – — . .. ... … , ; : ? ! ?! 猫 。 ー 고"
)
PIECES = st.sampled_from(HARD.split())
ENDS = st.sampled_from(["", "", "", ".", ".", ",", "?", "!", ":", ";", '."', ".)", '"', ")", "...", "%.", ".:", "',"])
GAPS = st.sampled_from(
    [" ", " ", " ", " ", "", "  ", "\n", "\n\n", " \n", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u3000"]
)
TEXTS = st.lists(st.tuples(PIECES, st.sampled_from(["", "", '"', "(", "*"]), ENDS, GAPS), max_size=7).map(
    lambda parts: "".join(f"{opening}{piece}{end}{gap}" for piece, opening, end, gap in parts)
)


@given(TEXTS)
@example("It costs 5. the dog barks.")
@example("It costs 5. The dog barks.")
@example("See J. Bach, J. bach and (J. Bach).")
@example("in 2020.\n\nand then")
@example("e.g. this, U.S. Army; wanna? Gonna, cannot!")
@example('He said "no. Go (away)." It\'s "fine".')
@example("the dog.: it, or the cat., or 5./the")
@example(" dogs. cats\xa0and birds. fish")
def test_any_text_has_as_many_words_as_by_nltk_alone(text):
    assert count_words(text) == count_by_nltk(text)


SENTENCE_PARTS = st.sampled_from(
    [
        "The dog barks.", "A cat sat on the mat.", "It is red. Then", "No one", "Dr. Smith said.", "(See it.) We go.",
        'He said "no." They left.', "A. B. Then", "and so on etc. The", "It cost 5. The", "U.S. The army", "[sic] it",
        "'Tis fine. We", "''Quoted.'' She left.", "the sign 'Main St.'", "waiting... then", "We cannot. Gonna",
    ]
)  # fmt: skip


@given(st.lists(st.tuples(SENTENCE_PARTS, st.sampled_from([" ", " ", "  ", "\n", " ' ", ' "'])), max_size=8))
@example([("It is red. Then", " "), ("''Quoted.'' She left.", " ")])
def test_a_text_of_which_some_sentences_are_hard_has_as_many_words_as_by_nltk_alone(parts):
    text = "".join(f"{part}{gap}" for part, gap in parts)
    assert count_words(text) == count_by_nltk(text)


def test_of_a_text_with_one_hard_word_nltk_is_askedno_more_than_what_stands_around_it(monkeypatch):
    asked = []
    monkeypatch.setattr(word_count, "_nltk_words", lambda text: asked.append(text) or 0)
    count_words("The bus is red. A man under the sign 'Main St.' looks at the bus. He waits there.")
    assert asked == ["sign 'Main St.' looks "]


def test_the_pieces_that_are_kept_are_bounded(monkeypatch):
    monkeypatch.setattr(word_count, "MOST_PIECES", 3)
    monkeypatch.setattr(word_count, "_pieces", word_count._Pieces())
    assert [count_words(f"a {word}!") for word in ("bus", "car", "cat", "dog", "bus")] == [3] * 5
    assert len(word_count._pieces) <= 3


@given(st.text(st.sampled_from("aJ5é.,:?!'’\"“”()*-–% \n猫"), max_size=12))
def test_any_short_string_of_marks_has_as_many_words_as_by_nltk_alone(text):
    assert count_words(text) == count_by_nltk(text)


def test_counting_keeps_nothing_of_the_texts_that_nltk_counts():
    for word in ("Bach", "Brahms", "bach"):
        assert count_words(f"See J. {word}.") == count_by_nltk(f"See J. {word}.")
    assert not word_count._tokenizers()[2].ortho_context
