"""The rule `objects`, and what cells of the columns that rules read may hold."""

import pytest

from data_engine.rules import contains, objects
from data_engine.rules.cells import values_in
from data_engine.rules.final_answer import final_answer

NAN = float("nan")

COLUMN = [
    ["dog", "hot dog", "teddy bear"],
    ["buses", "person", "knife"],
    '["cherry", "box"]',
    "glass, potato, tray",
    None,
    "",
]


@pytest.mark.parametrize(
    ("there", "answer", "score"),
    [
        (["dog"], "A dog.", 1), (["dog"], "Two dogs and a DOG", 1), (["dogs"], "a dog", 1), (["dog"], "A hot dog.", 0),
        (["dog"], "a dog and a hot dog", 0.5), (["teddy bear"], "Teddy-bears and a dog and dogs", 0.5),
        (["bus"], "a bus, buses", 1), (["buses"], "one bus", 1), (["person"], "Many people", 1),
        (["knives"], "A knife", 1), (["tray"], "two trays", 1),
        (["cherries"], "a cherry", 1), (["boxes", "potato"], "a box of potatoes and glasses", 2 / 3),
        (["dog"], "A cat.", None), (["dog"], "", None), ([], "A dog.", 0), (None, "A dog.", None), ("", "A dog.", None),
        ("dog, person", "people with dogs", 1), ('["dog"]', "a person with a dog", 0.5), (["dog"], "dogma", None),
        (NAN, "A dog.", None), (["dog", None, NAN], "A dog.", 1),
    ],
)  # fmt: skip
def test_objects(there, answer, score):
    rule = objects.make(COLUMN)
    [found] = rule({"objects": there}, [answer])
    assert found == (score if score is None else pytest.approx(score))


@pytest.mark.parametrize(
    ("cell", "got"),
    [
        ({"answer": "cat"}, "an object"), ([{"answer": "cat", "answer_id": 1}], "a list of objects"),
        ('[{"answer": "cat"}]', "a list of objects"), (["cat", ["dog"]], "a list of lists"), (b"cat", "bytes"),
        (["cat", b"dog"], "a list of bytes"), ({"cat"}, "a value of type set"),
    ],
)  # fmt: skip
def test_a_cell_of_answers_that_is_none_is_told_by_its_kind(cell, got):
    expected = "text, a number, true or false, or a list of these"
    for rule in (final_answer, contains.contains):
        with pytest.raises(ValueError, match=f'^the column "answer" must hold {expected}, got {got}$'):
            rule({"answer": cell}, ["cat"])


@pytest.mark.parametrize(
    ("cell", "got"),
    [
        (3, "a number"), ({"name": "cat"}, "an object"), ([1], "a list of numbers"), ("[1]", "a list of numbers"),
        ([{"name": "cat"}], "a list of objects"), ('[{"name": "cat"}]', "a list of objects"),
    ],
)  # fmt: skip
def test_a_cell_of_objects_that_holds_no_names_is_told_by_its_kind(cell, got):
    rule = objects.make([["dog"], cell])
    with pytest.raises(ValueError, match=f'^the column "objects" must hold lists of names, got {got}$'):
        rule({"objects": cell}, ["A dog."])
    assert rule({"objects": ["dog"]}, ["A dog."]) == [1]


@pytest.mark.parametrize(
    ("cell", "items"),
    [
        # str() of a list, as a CSV of pandas and MMMU's column have it.
        ("['24/7', '3.429']", ["24/7", "3.429"]), ("['A']", ["A"]), (r"""["it's", 'x']""", ["it's", "x"]),
        (" ['a','b'] ", ["a", "b"]), ("['1', '2']", ["1", "2"]), ("['a', None]", ["a"]), (r"['\\pi']", [r"\pi"]),
        # One answer each.
        ("[1, 2]", ["[1, 2]"]), ("[a, b]", ["[a, b]"]), ("[0, 1)", ["[0, 1)"]), ("[1, 2], [3, 4]", ["[1, 2], [3, 4]"]),
    ],
)  # fmt: skip
def test_a_list_in_text_may_be_pythons(cell, items):
    assert values_in(cell) == items


def test_objects_may_stand_in_a_list_of_python():
    rule = objects.make(["['dog', 'cat']", "['teddy bear']"])
    assert rule({"objects": "['dog', 'cat']"}, ["A dog and a teddy bear."]) == [0.5]


@pytest.mark.parametrize("cell", ["['cat' 'dog']", "['cat'\n 'dog']", r"""["\sqrt{2}"]""", "['cat', nan]"])
def test_text_that_begins_as_a_list_and_is_none_is_refused(cell):
    # By "a" + "b" in one literal Python would take the array of numpy for one name, "catdog".
    for name, rule in (("answer", final_answer), ("answer", contains.contains), ("objects", objects.make(["dog"]))):
        with pytest.raises(ValueError, match=f'^the column "{name}" must hold a list in text as JSON or Python writes'):
            rule({name: cell}, ["cat"])


def test_text_that_nests_too_deep_for_json_is_text():
    deep = "[" * 100_000
    assert values_in(deep) == [deep]


def test_a_list_of_vectors_has_one_answer_each():
    assert values_in([[1, 2], [3.5, 4]]) == ["[1, 2]", "[3.5, 4]"]
