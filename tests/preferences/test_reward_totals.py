"""Rewards over all answers, worked out by hand."""

import numpy as np
import pytest

from data_engine.preferences.reward_totals import RewardTotals, told, uneven

NONE = float("nan")
# Four questions: some right; all right; no number at all; one number, and one that is none.
UNIT = np.array([1.0, 0, 0, 1, 1, NONE, NONE, 0.5, np.inf])
STARTS = [0, 3, 5, 7]
MEANS = {
    "answers": 6, "questions": 3, "equal": 1, "mean": pytest.approx(3.5 / 6, rel=1e-8), "best": pytest.approx(2.5 / 3),
    "worst": pytest.approx(0.5),
}  # fmt: skip


def test_means_are_over_answers_with_a_number_and_over_their_questions():
    totals = RewardTotals()
    totals.add(UNIT, STARTS)
    assert totals.means() == MEANS


def test_they_do_not_depend_on_how_questions_lie_in_units():
    totals = RewardTotals()
    for start, end in ((0, 3), (3, 5), (5, 7), (7, 9)):
        totals.add(UNIT[start:end], [0])
    assert totals.means() == MEANS


def test_numbers_of_thirds_are_the_same_to_the_last_digit_whatever_the_units():
    values = np.arange(1, 301) / 3
    whole, parts = RewardTotals(), RewardTotals()
    whole.add(values, range(0, 300, 10))
    for start in range(0, 300, 10):
        parts.add(values[start : start + 10], [0])
    assert whole.means() == parts.means()


def test_a_unit_without_answers_and_a_run_without_any_are_nothing():
    totals = RewardTotals()
    totals.add(np.array([]), [])
    assert set(totals.means().values()) == {0}
    # No number has no mean: 0 would be a wrong one.
    assert told("rule", totals.means()) == "rule: no answer has a number"


def test_it_is_told_in_words():
    totals = RewardTotals()
    totals.add(UNIT[:5], STARTS[:2])
    assert told("rule", totals.means()) == (
        "rule: 0.6 on average over 5 answers, 1 for the best of a question, 0.5 for the worst; one number for all "
        "answers: 1 of 2 questions"
    )
    assert told("rule", totals.means() | {"ranks": False}).startswith("rule (does not rank): 0.6 on average")
    assert told("rule", totals.means() | {"ranks": True}).startswith("rule: 0.6 on average")


@pytest.mark.parametrize(
    ("share", "said"),
    [
        # Ratings from 1 to 5, beside numbers that lie a fourth as far apart, nearer, and not at all.
        ([0, 1, NONE, 0.5], "from 1 to 5, where those of rule.share are from 0 to 1:"),
        ([0, 1.01, 0, 0.5], None),
        ([1, 1, 1, 1], None),
        ([NONE] * 4, None),
    ],
)
def test_a_mean_of_uneven_scales_is_told(share, said):
    totals = {"rule.rating": RewardTotals(), "rule.share": RewardTotals(), "rule.mean": RewardTotals()}
    for start in (0, 2):
        totals["rule.rating"].add(np.array([5.0, 1, 2, 3][start : start + 2]), [0])
        totals["rule.share"].add(np.array(share[start : start + 2], float), [0])
    aspects = {"rule": ("rating", "share")}
    found = list(uneven(totals, aspects, ["rule.mean"]))
    assert [said in one for one in found] == ([True] if said else [])
    assert not list(uneven(totals, aspects, ["rule.rating", "rule.share"]))
