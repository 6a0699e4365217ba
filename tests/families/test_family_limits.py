"""Llama 4 scales queries by their place in the pass from floor_scale on: a short check of a short prompt shows nothing."""

import product
import pytest
import torch
from asked import ASKED
from checkpoints import Checkpoint
from comparisons import STEPS, TOLERANCE, wrong_greedy_rows
from families import VISION, Family, missing

pytestmark = pytest.mark.families


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, one_thread):
    if absent := missing(VISION):
        pytest.skip(f"the processor of llama4 needs {absent}")
    family = Family("tiny_windows:llama4_near", "", "<|eot|>")
    return Checkpoint("llama4_near", tmp_path_factory.mktemp("limits"), family)


def test_an_answer_that_goes_beyond_the_limit_is_right_or_refused(checkpoint):
    asked, answer = ASKED["wide"], [number % 256 for number in range(90)]
    # It is decided on a first question that shows nothing.
    product.scores(checkpoint.model, asked, [answer[:10]])
    try:
        [found] = product.scores(checkpoint.model, asked, [answer])
    except ValueError as refusal:
        assert "160" in str(refusal)
    else:
        torch.testing.assert_close(found, checkpoint.stock.score(asked, answer), atol=TOLERANCE, rtol=0)


def test_answers_below_it_are_right_though_all_of_them_together_are_beyond_it(checkpoint):
    asked, fresh = ASKED["wide"], checkpoint.reloaded()
    answers = [[(start + number) % 256 for number in range(40)] for start in (0, 70, 140)]
    found = product.scores(fresh.model, asked, answers)
    expected = [fresh.stock.score(asked, answer) for answer in answers]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=TOLERANCE, rtol=0)


def test_answers_that_stay_below_it_share_their_prompt(checkpoint):
    fresh = checkpoint.reloaded()
    assert wrong_greedy_rows(fresh, ASKED["wide"]) == 0
    assert fresh.stock.inputs(ASKED["wide"])["input_ids"].shape[1] + STEPS < 160
    assert product.is_fast(fresh.model)
