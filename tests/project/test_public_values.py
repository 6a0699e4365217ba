"""The functions for Python refuse what would give a wrong number, or an error that does not say what is wrong."""

from pathlib import Path

import pytest

from data_engine import build_pairs, sample_answers, score_answers
from data_engine.errors import UserError

ROWS = [{"idx": 1, "sample_index": n, "answer": f"a {n}", "sum": float(n), "avg": float(n)} for n in range(4)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0 .0 is greedy., got -1.0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"image": "a.png"}, "image must be a PIL image, the bytes of a file, .* got str"),
        ({"image": Path("a.png")}, "image must be a PIL image, .* got PosixPath"),
        ({"image": [None]}, "image must be a PIL image, .* got NoneType"),
        ({"question": None}, "question must be a text or chat messages, got None"),
    ],
)
def test_a_value_out_of_range_is_told_by_its_name(instruct, golden_images, changes, says):
    given = {"image": golden_images[0], "question": "What is it?", "k": 1, "max_new_tokens": 1} | changes
    with pytest.raises(UserError, match=says):
        sample_answers(instruct, **given)


def test_one_text_is_no_list_of_answers(instruct, golden_images):
    """Each of its letters would be scored as an answer."""
    with pytest.raises(UserError, match="answers must be a list of texts, or of lists of ids; got one text"):
        score_answers(instruct, golden_images[0], "What is it?", "a dog")


@pytest.mark.parametrize("answer", [b"a dog", {"answer": "a dog"}, None, 5])
def test_an_answer_is_a_text_or_ids(instruct, golden_images, answer):
    """Each byte of one in bytes would be scored as the id of a token."""
    with pytest.raises(UserError, match=f"answers must be .* got one of {type(answer).__name__}"):
        score_answers(instruct, golden_images[0], "What is it?", ["a cat", answer])


def test_one_text_is_no_list_of_markers():
    """Each answer with one of its letters would not rank."""
    with pytest.raises(UserError, match="markers must be a list of texts, got one text, 'USER:'"):
        build_pairs(ROWS, markers="USER:")


def test_pairs_by_what_is_right_need_to_know_it():
    found = build_pairs(ROWS, strategy="right_wrong", right=2.0)
    assert {(pair.chosen_sum, pair.rejected_sum) for pair in found} == {(2.0, 0.0), (2.0, 1.0), (3.0, 0.0), (3.0, 1.0)}
    for wrong in ({"strategy": "right_wrong"}, {"right": 2.0}):
        with pytest.raises(UserError, match="right goes with strategy right_wrong, and is needed there"):
            build_pairs(ROWS, **wrong)
    with pytest.raises(UserError, match="right must be a finite number, got nan"):
        build_pairs(ROWS, strategy="right_wrong", right=float("nan"))
