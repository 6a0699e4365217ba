"""What the rule `contains` finds in an answer."""

import pytest

from data_engine.rules import contains

NAN = float("nan")


@pytest.mark.parametrize(
    ("right", "answer", "score"),
    [
        ("cat", "There is a Cat.", 1), ("cat", "a category", 0), ("a cat", "There is A  CAT, big", 1),
        ("cat", "cats", 0),
        ("5", "15 apples", 0), ("5", "5 apples", 1), ("café", "Cafe\u0301 au lait", 1), ("C++", "in C++, yes", 1),
        (["cat", "dog"], "a dog", 1), (["cat", "dog"], "a bird", 0), ("cat.", "a cat", 1), (None, "cat", None),
        ("", "cat", None), ("...", "cat", None),
        ("．", "cat", None), (3, "I see 3 of them", 1), (3.0, "I see 3 of them", 1),
        (3.0, "It is 3.0 m", 1), (3.5, "It is 3 m", 0), (float("inf"), "inf", 1), (NAN, "x nan", None),
        ([NAN, "cat"], "nan", 0), ("nan", "x nan", 1), ('["cat", "dog"]', "a dog", 1), ('["cat", "dog"]', "a bird", 0),
        ("[1, 2]", "It is [1, 2].", 1), ("[1, 2]", "1", 0), ("[cat", "a [cat", 1),
    ],
)  # fmt: skip
def test_contains(right, answer, score):
    assert contains.make([])({"answer": right}, [answer]) == [score]


@pytest.mark.parametrize(
    ("right", "answer", "score"),
    [
        ("A", "A", 1), ("A", "(A)", 1), ("A", "a", 1), ("A", "A. A cat", 1), ("A.", "A", 1),
        ("A", "The answer is A.", 1),
        ("A", "A is right", 1), ("A", "A and C", 1), ("A", "A\nIt is a cat", 1), ("A", "A - a cat", 1),
        ("I", "Option I", 1), ("I", "I and II", 1), ("A", "A B", 1),
        ("A", "The answer is A as shown.", 1), ("A", "Option A shows a cat", 1), ("A", "It is B, A is not", 1),
        ("A", "It is A, I think", 1), ("A", "选A", 1), (["A", "cat"], "a cat", 1),
        # The article; and that of another option.
        ("A", "a cat", 0), ("A", "B. a cat", 0), ("A", "B. A cat", 0), ("A.", "B. A cat", 0), ("A", "It is a cat", 0),
        ("A", "The answer is B, a cat", 0), ("A", "AB", 0), ("B", "(A) B", 0),
        ("a", "a cat", 1), ("I", "i see", 0),
        # The article, and the pronoun, with which a sentence begins.
        ("A", "A cat sits on a mat.", 0), ("A", "I think it is B. A cat is there.", 0), ("A", "A 10-year-old", 0),
        ("A", "- A cat\n- A dog", 0), ("A", "I see\nA cat", 0), ("A", 'It says: "A cat"', 0), ("A", "**A cat**", 0),
        ("I", "I think it is B", 0), ("I", "I'm sure that it is B", 0), ("I", "I’m sure that it is B", 0),
    ],
)  # fmt: skip
def test_contains_takes_a_capital_for_the_letter_of_an_option(right, answer, score):
    assert contains.make([])({"answer": right}, [answer]) == [score]


@pytest.mark.parametrize(
    ("right", "answer", "score"),
    [
        ("no", "No, there is none.", 1), ("No", "There is no dog.", 1), ("yes", "**Yes**", 1),
        ("yes", "Yes/No", 0), ("no", "yes or no", 0), ("Yes", "I say yes", 1),
        # The answer is the other one.
        ("no", "**Yes**, no doubt", 0),
        ("no", "Yes, and there is no doubt.", 0), ("yes", "No. A yes would be wrong.", 0), ("no", "yes", 0),
        ("no", "Nothing", 0), ("no", "Yesterday there was no dog", 1), (["no", "none"], "Yes, none", 1),
    ],
)  # fmt: skip
def test_contains_takes_yes_and_no_from_the_beginning_of_an_answer(right, answer, score):
    assert contains.make([])({"answer": right}, [answer]) == [score]


@pytest.mark.parametrize(
    ("right", "answer", "score"),
    [
        ("猫", "图片里有一只猫和两只狗。", 1), ("猫", "图片里有两只狗。", 0),
        ("5", "图中有5只猫", 1), ("5", "图中有15只猫", 0),
        ("5", "图中有1.5米", 0), ("cat", "这是cat吗", 1), ("cat", "这是cats", 0), ("ねこ", "これはねこです", 1),
        ("แมว", "มีแมวสองตัว", 1), ("5 只", "有5 只猫", 1), ("5", "5万円", 0), ("5", "5千円", 0),
    ],
)  # fmt: skip
def test_contains_finds_texts_of_scripts_without_spaces(right, answer, score):
    assert contains.make([])({"answer": right}, [answer]) == [score]


@pytest.mark.parametrize(
    ("right", "answer", "score"),
    [
        ("서울", "서울은 크다", 1), ("서울", "여기는 서울", 1), ("서울", "남서울은 크다", 0),
        ("서울", "부산은 크다", 0),
        ("고양이", "고양이가 있다", 1), ("서울", "서울Tower", 0), ("Paris", "Paris는 크다", 1), ("cat", "cats는", 0),
        ("5", "고양이 5마리", 1), ("5", "15마리", 0), ("5", "5만 원", 0), ("5", "5천 원", 0),
        ("5", "5백 원", 0), ("5", "1.5미터", 0),
    ],
)  # fmt: skip
def test_contains_finds_a_korean_word_before_its_particle(right, answer, score):
    assert contains.make([])({"answer": right}, [answer]) == [score]


@pytest.mark.parametrize(
    ("right", "answer", "score"),
    [
        ("5", "There are 5.", 1), ("5", "(5)", 1), ("5", "1, 5, 7", 1), ("5", "5cm", 0), ("5", "3-5 of them", 1),
        ("5", "1.5", 0), ("5", "5.2 m", 0), ("500", "2,500", 0), ("2", "2,500", 0), ("5", "It is -5.", 0),
        ("5", "\u22125", 0), ("-5", "It is -5.", 1), ("1.5", "about 1.5.", 1), ("1.5", "1.52", 0), (5, "5", 1),
        ("5 cats", "2.5 cats", 0), ("route 6", "route 6.1", 0), ("cat", "a.cat,1", 1),
    ],
)  # fmt: skip
def test_contains_takes_a_number_as_a_whole(right, answer, score):
    assert contains.make([])({"answer": right}, [answer]) == [score]
