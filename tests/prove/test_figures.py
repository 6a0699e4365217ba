"""The proof's statistics: rates by hand, a bootstrap that is paired, and areas with and without length."""

import areas
import figures
import numpy as np
import pytest


def counts(*pictures):
    """One seed's counts: (claims, wrong, found, objects, words) a picture."""
    return np.array([pictures], dtype=float)


def test_rates_are_sums_over_sums():
    # 1 of 2 and 0 of 4 objects wrong; found 1 of 3 and 4 of 4; 6 and 10 words.
    arm = figures.totals(counts((2, 1, 1, 3, 6), (4, 0, 4, 4, 10)), (np.ones((1, 1)), np.ones((1, 2))))
    assert arm.chair_i[0] == pytest.approx(1 / 6)
    assert arm.chair_s[0] == pytest.approx(1 / 2)
    assert arm.coverage[0] == pytest.approx(5 / 7)
    assert arm.length[0] == pytest.approx(8)


def test_a_resample_counts_a_seed_and_a_picture_as_often_as_it_is_taken():
    two = np.concatenate([counts((1, 1, 0, 1, 1), (1, 0, 1, 1, 1)), counts((2, 0, 2, 2, 1), (2, 2, 0, 2, 1))])
    # The second seed twice, the first picture twice: 0 of 8 wrong.
    arm = figures.totals(two, (np.array([[0.0, 2.0]]), np.array([[2.0, 0.0]])))
    assert (arm.wrong[0], arm.claims[0]) == (0, 8)


def test_the_first_of_all_resamples_takes_each_once_and_the_others_as_many_in_all():
    seeds, pictures = figures.resampled(3, 50, resamples=20)
    assert (seeds[0] == 1).all()
    assert (pictures[0] == 1).all()
    assert (seeds.sum(1) == 3).all()
    assert (pictures.sum(1) == 50).all()
    assert len({tuple(row) for row in pictures}) == 21


def test_the_bootstrap_is_paired():
    """An arm with half of the wrong objects of each picture has a fall of one half in every resample."""
    rng = np.random.default_rng(0)
    base = np.stack([np.full((3, 40), 4), 2 * rng.integers(0, 3, (3, 40)), *np.ones((3, 3, 40))], axis=-1)
    arm = base.copy()
    arm[..., figures.WRONG] /= 2
    found = figures.table({figures.BASELINE: base, "half": arm, "oracle": arm}, resamples=200)
    fall = found["half"]["fall"]
    assert (fall.value, fall.low, fall.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found["half"]["of_oracle"].low == pytest.approx(1)
    # The rates themselves do vary.
    assert found["half"]["chair_i"].low < found["half"]["chair_i"].value < found["half"]["chair_i"].high


def test_an_interval_covers_a_known_rate_about_as_often_as_it_says():
    """Pictures that are wrong with 0.2 each, one seed: the interval of 95 % holds 0.2 in most of 60 worlds."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(60):
        wrong = (rng.random((1, 200)) < 0.2).astype(float)
        world = np.stack([np.ones_like(wrong), wrong, *np.ones((3, 1, 200))], axis=-1)
        rate = figures.table({figures.BASELINE: world}, resamples=200)[figures.BASELINE]["chair_i"]
        held += rate.low <= 0.2 <= rate.high
    assert 51 <= held <= 60


def test_an_area_is_the_share_of_pairs_within_a_question_that_are_in_order():
    values = np.array([3.0, 1.0, 2.0, 9.0, 5.0, 5.0])
    true = np.array([True, False, True, False, True, False])
    groups = np.array([0, 0, 0, 0, 1, 1])
    # Question 0: 3>1, 2>1, 3<9, 2<9; question 1: a tie. (2 + 0.5) of 5.
    assert areas.area(values, true, groups) == pytest.approx(0.5)


def test_what_a_line_in_length_explains_is_taken_out():
    words = np.array([1.0, 2.0, 3.0, 5.0, 7.0])
    groups = np.array([0, 0, 0, 1, 1])
    # Two per word and a constant a question: nothing is left.
    values = 2 * words + np.array([10.0, 10.0, 10.0, -4.0, -4.0])
    assert areas.without_length(values, words, groups) == pytest.approx(np.zeros(5))
    # What length does not explain stays: +1 and -1 in question 1, at equal lengths in question 0.
    left = areas.without_length(np.array([1.0, -1.0]), np.array([4.0, 4.0 + 1e-9]), np.array([0, 0]))
    assert left[0] - left[1] == pytest.approx(0, abs=1e-6)
