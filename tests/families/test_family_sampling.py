"""Answers drawn side by side are those that the stock model draws alone, in every family."""

import product
import pytest
from asked import ASKED
from comparisons import redrawn, wrong_greedy_rows

from data_engine.seeds import seed_for

# More answers than rows; the first ones are so different that a row is refilled while others go on.
ROWS = 3
LENGTHS = [[30, 1, 12, 2, 7], [3, 25, 1, 9, 18]]


@pytest.mark.parametrize("prompt", list(ASKED))
def test_greedy_ids_are_those_of_generate_in_every_row(checkpoint, prompt):
    if prompt in checkpoint.asked():
        assert wrong_greedy_rows(checkpoint, ASKED[prompt]) == 0


def test_an_answer_does_not_depend_on_how_many_are_drawn_beside_it(checkpoint):
    model, asked = checkpoint.model, ASKED["wide"]
    many = product.sampled(model, asked, 5, temperature=0.7, steps=12)
    assert len(set(map(tuple, many))) > 1
    for k in (1, 2, 3):
        assert product.sampled(model, asked, k, temperature=0.7, steps=12) == many[:k]
    for number, answer in enumerate(many):
        assert redrawn(checkpoint, asked, answer, seed_for(0, "", number)) == answer


def test_rows_that_are_refilled_hold_the_right_answers(checkpoint):
    asked, forced = [ASKED["wide"], ASKED["high"]], checkpoint.family.fast
    found = product.ragged(checkpoint.model, asked, LENGTHS, ROWS)
    if forced:
        assert [[len(answer) for answer in answers] for answers in found] == LENGTHS
    for number, (one, answers) in enumerate(zip(asked, found, strict=True)):
        for index, answer in enumerate(answers):
            # The last token of a forced length is the one that ends it, whatever was drawn.
            drawn = len(answer) - forced
            expected = redrawn(checkpoint, one, answer, seed_for(0, number, index), forced)
            assert answer[:drawn] == expected[:drawn]


def test_what_ends_an_answer_and_what_it_never_holds_is_read_from_the_checkpoint(checkpoint):
    assert product.ends(checkpoint.model) == checkpoint.ends
    assert set(product.banned(checkpoint.model)) >= set(checkpoint.stock.placeholders)
