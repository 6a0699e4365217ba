"""Llama 4 scales queries by their place in the pass, from floor_scale on: a short check of a short prompt sees nothing.

Answers are packed in a pass, so their places in it are other ones than in their sequences.
"""

import contextlib

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


def test_answers_below_it_are_right_though_together_they_are_beyond_it(checkpoint):
    asked, fresh = ASKED["wide"], checkpoint.reloaded()
    answers = [[(start + number) % 256 for number in range(40)] for start in (0, 70, 140)]
    # It is decided on a first question that shows nothing.
    product.scores(fresh.model, asked, [answers[0][:10]])
    found = product.scores(fresh.model, asked, answers)
    expected = [fresh.stock.score(asked, answer) for answer in answers]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=TOLERANCE, rtol=0)


def test_answers_beyond_it_are_right_or_refused(checkpoint):
    asked, fresh = ASKED["wide"], checkpoint.reloaded()
    answers = [[(start + number) % 256 for number in range(90)] for start in (0, 70)]
    product.scores(fresh.model, asked, [answers[0][:10]])
    with contextlib.suppress(ValueError):
        found = product.scores(fresh.model, asked, answers)
        expected = [fresh.stock.score(asked, answer) for answer in answers]
        torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=TOLERANCE, rtol=0)


def test_answers_that_stay_below_it_share_their_prompt(checkpoint):
    fresh = checkpoint.reloaded()
    assert wrong_greedy_rows(fresh, ASKED["wide"]) == 0
    assert fresh.stock.inputs(ASKED["wide"])["input_ids"].shape[1] + STEPS < 160
    assert product.is_fast(fresh.model)
