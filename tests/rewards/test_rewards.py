"""Rewards of answers from their token log-probs."""

import math

import numpy as np
import pytest

from data_engine.preferences.answers import REASONS, unusable_reward, unusable_text
from data_engine.rewards import AnswerError, Tokens
from data_engine.rewards.implicit import text_rewards, token_rewards

INSTRUCT = Tokens.of([[-1.0, -2.0, -0.5, -4.0]])
REWARD = Tokens.of([[-0.5, -2.5, -0.25, -1.0]])
# d = 0.5, -0.5, 0.25, 3.0: sum 3.25, mean 0.8125, min -0.5, last 3.0


def test_the_four_rewards_are_beta_times_sum_mean_minimum_and_last_difference():
    result = token_rewards(INSTRUCT, REWARD, beta=0.1)
    assert result["sum"].item() == pytest.approx(0.325, abs=1e-15)
    assert result["avg"].item() == pytest.approx(0.08125, abs=1e-15)
    assert result["min"].item() == pytest.approx(-0.05, abs=1e-15)
    assert result["last"].item() == pytest.approx(0.3, abs=1e-15)


def test_defect_4_beta_is_applied_once_to_the_average():
    result = token_rewards(INSTRUCT, REWARD, beta=0.1)
    assert result["avg"].item() == pytest.approx(result["sum"].item() / 4)
    assert token_rewards(INSTRUCT, REWARD, beta=0.2)["avg"].item() == pytest.approx(2 * result["avg"].item())


@pytest.mark.parametrize("large", [2.0**24, 2.0**60])
def test_sums_are_exact_though_the_log_probs_are_float32(large):
    # A float32 sum loses the 1 beside 2 ** 24, a float64 sum in order loses it beside 2 ** 60.
    reward, instruct = Tokens.of([[large, 1, -large]]), Tokens.of([[0, 0, 0]])
    assert token_rewards(instruct, reward, beta=1.0)["sum"].item() == 1.0
    assert text_rewards(instruct, reward, beta=1.0)["sum"].item() == 1.0


def test_a_number_of_tokens_that_differs_between_the_models_is_an_error_that_says_both():
    with pytest.raises(AnswerError, match="4 log-probs from the model before DPO and 3 from the reward") as error:
        token_rewards(Tokens.of([[-1], [-1] * 4]), Tokens.of([[-2], [-2] * 3]), beta=0.1)
    assert error.value.place == 1


def test_models_with_different_tokenizers_compare_sums_and_means_and_leave_the_rest_out():
    # Sums -7.5 and -3.0; means -1.875 and -1.0.
    result = text_rewards(INSTRUCT, Tokens.of([[-0.5, -2.25, -0.25]]), beta=0.1)
    assert result["sum"].item() == pytest.approx(0.45)
    assert result["avg"].item() == pytest.approx(0.0875)
    assert result.keys() == {"sum", "avg"}


@pytest.mark.parametrize("function", [token_rewards, text_rewards])
@pytest.mark.parametrize("bad", [[], [math.nan, -1.0], [-math.inf, -1.0], [math.inf, -1.0]])
def test_defects_7_and_14_an_answer_without_counted_or_finite_log_probs_has_no_finite_reward(function, bad):
    good = [-1.0] * len(bad)
    for instruct, reward in ((bad, good), (good, bad), (bad, bad)):
        # Its neighbours are not concerned.
        result = function(Tokens.of([[-1.0], instruct, [-1.0]]), Tokens.of([[-2.0], reward, [-3.0]]), 0.1)
        for column in result.values():
            assert np.isnan(column).tolist() == [False, True, False]
        assert result["sum"][[0, 2]].tolist() == pytest.approx([-0.1, -0.2])


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_an_answer_without_text_is_empty(text):
    assert unusable_text(text) == "empty"


def test_an_answer_that_contains_a_marker_of_the_prompt_format_never_ranks():
    markers = ("<image>", "</s>", " ASSISTANT: ")
    assert unusable_text("a cat</s> and more", markers) == "marker"
    assert unusable_text("USER: hi ASSISTANT: hello", markers) == "marker"
    assert unusable_text("an <image>", markers) == "marker"
    assert unusable_text("the ASSISTANT is polite, 1 < 2 > 0 <s>", markers) is None


@pytest.mark.parametrize(
    ("total", "average", "reason"),
    [
        (1.0, 0.5, None),
        (0.0, 0.0, None),
        (math.nan, 0.5, "non_finite"),
        (1.0, math.inf, "non_finite"),
        (-math.inf, 0.5, "non_finite"),
        (None, None, "not_scored"),
    ],
)
def test_an_answer_without_two_finite_rewards_never_ranks(total, average, reason):
    assert unusable_reward(total, average) == reason


def test_every_reason_is_explained():
    assert {"empty", "marker", "non_finite", "not_scored"} <= REASONS.keys()
    assert all(REASONS.values())


def plainly(instruct, reward, beta):
    """The rewards of one answer, number by number."""
    if not instruct or not all(map(math.isfinite, [*instruct, *reward])):
        return [math.nan] * 4
    difference = [r - i for i, r in zip(instruct, reward, strict=True)]
    total = math.fsum(difference)
    return [beta * total, beta * (total / len(difference)), beta * min(difference), beta * difference[-1]]


def test_the_rewards_of_a_unit_are_those_of_each_answer_to_the_last_bit():
    draw = np.random.default_rng(3)
    answers = [
        [(-draw.exponential(0.5 ** draw.integers(0, 40), n)).astype(np.float32).tolist() for n in (length, length)]
        for length in draw.integers(0, 60, 300)
    ]
    answers[7][0][-1:] = [math.inf]
    answers[9][1][:1] = [math.nan]
    instruct, reward = (Tokens.of([one[side] for one in answers]) for side in (0, 1))
    found = token_rewards(instruct, reward, 0.1)
    expected = [plainly(*one, 0.1) for one in answers]
    np.testing.assert_array_equal(np.stack(list(found.values()), 1), expected)
    assert np.isnan(found["sum"]).sum() >= 2
