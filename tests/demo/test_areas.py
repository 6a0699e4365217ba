"""The areas under the ROC of the demo's rewards, by hand."""

import pytest

from data_engine.demo.areas import Pair, is_true, table


@pytest.mark.parametrize(
    ("answer", "names", "expected"),
    [
        ("I can see a red cross and a blue square.", ("blue square", "red cross"), True),
        ("I can see a red cross.", ("blue square", "red cross"), True),
        ("I can see a red cross and a red cross.", ("red cross",), False),
        ("I can see a red circle.", ("red cross",), False),
        ("There are two objects in the picture.", ("red cross", "blue square"), True),
        ("There is one object in the picture.", ("red cross", "blue square"), False),
        ("Nothing else is visible.", ("red cross",), None),
    ],
)
def test_an_answer_is_true_where_all_that_it_names_is_there(answer, names, expected):
    assert is_true(answer, names) is expected


def test_an_area_is_the_share_of_pairs_in_the_right_order_and_ties_count_half():
    pairs = [
        Pair({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 0.0}),
        Pair({"a": 1.0, "b": 0.0}, {"a": 2.0, "b": 1.0}),
        Pair({"a": 2.0, "b": 0.0}, {"a": 1.0, "b": 1.0}),
        Pair({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.0}),
    ]
    lines = [line.split() for line in table(pairs, ("a", "b")).splitlines()]
    # a: right, wrong, right, tie; b: right, wrong, wrong, right; the first two pairs are those that they agree on.
    assert ["a", "0.625"] in lines
    assert ["b", "0.500"] in lines
    assert ["a", "and", "b", "0.500", "50.0%"] in lines
