"""Each strategy by hand-made numbers, and what holds for all of them in any world."""

import random

import pytest

from data_engine.preferences import filters
from data_engine.preferences.answers import AnswerRule, Answers, Ranked, places_of, why_not_ranked
from data_engine.preferences.filters import FilterRule
from data_engine.preferences.length_alpha import LengthBalance
from data_engine.preferences.near_duplicates import near_duplicates
from data_engine.preferences.strategies import STRATEGIES, Pair, PairRule, pair_up
from data_engine.tables import load


def pick(strategy, *rewards, **rule):
    return load(STRATEGIES[strategy])(Ranked(rewards), PairRule(strategy=strategy, **rule))


def test_cross_pairs_every_good_answer_with_every_bad_one():
    # Best first: 4, 0, 2 | 1, 3 by the first; 4, 2, 0 | 3, 1 by the second.
    assert pick("cross", [4, 1, 3, 0, 5], [3, 0, 4, 1, 5], pair_depth=2) == [(4, 1), (4, 3)]
    # By the first alone, 0 is in the top two as well.
    assert pick("cross", [4, 1, 3, 0, 5], pair_depth=2) == [(4, 1), (4, 3), (0, 1), (0, 3)]


def test_aligned_pairs_the_best_with_the_worst_and_the_second_best_with_the_second_worst():
    assert pick("aligned", [5, 0, 4, 1, 3, 2], pair_depth=2) == [(0, 1), (2, 3)]
    # Two good answers and one bad one.
    assert pick("aligned", [5, 4, 1, 0], [5, 4, 9, 0], pair_depth=2) == [(0, 3)]


def test_best_worst_goes_by_the_mean_rank_over_the_rewards():
    # Ranks 0, 1, 2, 3 by the first reward, and 2, 0, 1, 3 by the second: sums 2, 1, 3, 6.
    assert pick("best_worst", [9, 8, 7, 6], [2, 4, 3, 1]) == [(1, 3)]
    # Sums 1, 1, 4, 4: ties go by sample_index.
    assert pick("best_worst", [9, 8, 7, 6], [8, 9, 6, 7]) == [(0, 3)]


def test_best_worst_makes_no_pair_of_answers_with_one_mean_rank():
    assert pick("best_worst", [1, 0], [0, 1]) == []


def test_right_wrong_pairs_every_right_answer_with_every_wrong_one_by_the_first_reward():
    assert pick("right_wrong", [0, 1, 0.5, 1], [9, 9, 9, 9], right=0.5) == [(1, 0), (3, 0), (2, 0)]
    assert pick("right_wrong", [1, 1], right=1.0) == []
    assert pick("right_wrong", [0, 0], right=1.0) == []


def test_mu_2sigma_pairs_the_best_with_the_answer_nearest_to_two_deviations_below_the_mean():
    rewards = [9, 1, 5, 5, 8, 2, 5, 5]
    # Mean 5, squares 16 + 16 + 9 + 9 = 50, over 8: deviation 2.5, target 0.
    assert pick("mu_2sigma", rewards) == [(0, 1)]
    # Mean 0, squares 100 + 100 + 16 + 16 + 8 = 240, over 10: deviation 4.9, target -9.8.
    assert pick("mu_2sigma", [10, -10, 4, -4, 2, -2, 0, 0, 0, 0]) == [(0, 1)]
    outlier = [3] * 8 + [-2, -22]
    # Mean 0, squares 8 * 9 + 4 + 484 = 560, over 10: deviation 7.48, target -14.97: -22 is 7.03 away, -2 is 12.97.
    assert pick("mu_2sigma", outlier) == [(0, 9)]


def test_mu_2sigma_does_not_take_the_worst_answer_where_another_one_is_nearer():
    rewards = [1.0] * 39 + [-9.0, -30.0]
    # Mean 0, squares 39 + 81 + 900 = 1020, over 41: deviation 4.99, target -9.98.
    assert pick("mu_2sigma", rewards) == [(0, 39)]


def test_mu_2sigma_makes_no_pair_of_fewer_than_four_answers_or_of_equal_ones():
    assert pick("mu_2sigma", [3, 2, 1]) == []
    assert pick("mu_2sigma", [1, 1, 1, 1]) == []


def answers_of(texts, *rewards):
    names = ("sum", "avg")[: len(rewards)]
    return Answers("q", list(range(len(texts))), list(texts), dict(zip(names, rewards, strict=True)))


def test_a_fixed_length_alpha_ranks_by_the_reward_minus_so_much_a_word():
    # Words 1, 3, 2, 1; rewards minus 0.5 a word: 1.5, 2.5, 1.5, -0.5. The margin is that of the rewards.
    answers = answers_of(["a", "a b c", "a b", "b"], [2.0, 4.0, 2.5, 0.0])
    words = {text: len(text.split()) for text in answers.texts}.__getitem__
    rule = PairRule(pair_depth=1, length_alpha=0.5)
    [pair] = pair_up(answers, range(4), ["sum"], rule, words)
    assert (pair.good, pair.bad, pair.margin) == (1, 3, 4.0)
    # Minus 2 a word: 0, -2, -1.5, -2.
    [pair] = pair_up(answers, range(4), ["sum"], PairRule(pair_depth=1, length_alpha=2.0), words)
    assert (pair.good, pair.bad, pair.margin) == (0, 3, 2.0)


def test_length_alpha_auto_is_where_neither_side_of_the_pairs_is_longer():
    # Of two answers each, the longer one is chosen while alpha < reward difference / word difference: 0.1, 0.3 and 0.5
    # a word. With the first question turned round, the differences are -4 + 4 + 4 = 4 > 0; with two, -4.
    balance = LengthBalance(1)
    for step in (0.1, 0.3, 0.5):
        balance.add([[0.0, 4 * step]], [5, 9])
    rule = PairRule(pair_depth=1)
    assert balance.mean_difference(0.0, rule) == 4
    assert balance.mean_difference(0.2, rule) == pytest.approx(4 / 3)
    assert balance.mean_difference(0.4, rule) == pytest.approx(-4 / 3)
    assert balance.alpha(rule) == pytest.approx(0.3, abs=1e-6)
    # With a fourth like the third, the mean vanishes from 0.3 on to 0.5.
    balance.add([[0.0, 2.0]], [5, 9])
    assert 0.3 <= balance.alpha(rule) <= 0.5
    assert balance.mean_difference(balance.alpha(rule), rule) == 0


def test_length_alpha_auto_is_below_0_where_chosen_answers_are_shorter_and_0_without_a_difference():
    balance = LengthBalance(1)
    for step in (0.1, 0.3):
        balance.add([[0.0, -4 * step]], [5, 9])
    rule = PairRule(pair_depth=1)
    assert -0.3 <= balance.alpha(rule) <= -0.1
    assert balance.mean_difference(balance.alpha(rule), rule) == 0
    # Answers of 4 words' difference make no pair where they must differ by less.
    assert balance.mean_difference(0.0, PairRule(pair_depth=1, max_word_gap=4)) is None
    same = LengthBalance(1)
    same.add([[0.0, 1.0]], [5, 5])
    assert same.alpha(rule) == LengthBalance(1).alpha(rule) == 0


def test_length_alpha_auto_goes_no_further_than_there_are_pairs():
    """Best by the reward and worst: 30 and 10 words; with an alpha above 0.018, 30 and 60, too far apart for a pair."""
    balance, rule = LengthBalance(1), PairRule(strategy="best_worst", max_word_gap=25)
    balance.add([[1.0, 0.0, 0.9]], [30, 10, 60])
    assert balance.mean_difference(0.017, rule) == 20
    assert balance.mean_difference(0.019, rule) is None
    assert 0 <= balance.alpha(rule) < 0.018
    # Another question evens the first one out from 0.01 on: 4 words against 8 of half the reward.
    for _ in range(10):
        balance.add([[0.04, 0.0]], [8, 4])
    assert balance.mean_difference(0.009, rule) == pytest.approx(60 / 11)
    assert balance.mean_difference(0.011, rule) == pytest.approx(-20 / 11)
    assert balance.alpha(rule) == pytest.approx(0.01, abs=1e-6)


def test_near_duplicates_are_those_whose_sets_of_ten_words_are_alike():
    # 20 words have 11 grams. With the last word changed, 10 of 12 are shared; with the tenth, 1 + 10 = 11 are not.
    words = [f"w{number}" for number in range(20)]
    last, tenth = " ".join([*words[:19], "x"]), " ".join([*words[:9], "x", *words[10:]])
    whole = " ".join(words)
    assert near_duplicates([whole, last, tenth], 10 / 12) == [1]
    assert near_duplicates([whole, last, tenth], 0.84) == []
    # Grams 10 and on of `tenth` begin behind the change: one is shared of 21.
    assert near_duplicates([whole, tenth], 1 / 21) == [1]
    assert near_duplicates([whole, tenth], 1.01 / 21) == []


def test_the_first_of_near_duplicates_stays_and_is_what_later_ones_are_held_against():
    words = [f"w{number}" for number in range(30)]
    chain = [" ".join([*words[: 30 - changed], *(f"x{number}" for number in range(changed))]) for changed in range(7)]
    # Sharing 21 - n of 21 + n grams when n words at the end differ: 0.75 allows 3. Those 0 to 3 are near the first;
    # 4 is not, and stays; 5, 6 share all but the last grams with it.
    assert near_duplicates(chain[:5], 0.75) == [1, 2, 3]


def test_short_texts_compare_as_wholes_and_chinese_by_characters():
    assert near_duplicates(["a red bus", "a  red\nbus", "a red car"], 0.1) == [1]
    assert near_duplicates(["一只红色的大猫坐在桌子上面", "一只红色的大猫坐在桌子上边"], 0.5) == [1]
    assert near_duplicates(["一只红色的大猫坐在桌子上面", "一只红色的大猫坐在桌子上边"], 0.7) == []


def test_a_near_duplicate_does_not_rank_and_an_unusable_answer_is_no_original():
    answers = answers_of(["", "a b", "a  b", "c", "a b"], [1.0, 2.0, 3.0, 4.0, 5.0])
    rule = AnswerRule(("sum",), near_duplicates=1.0)
    assert why_not_ranked(answers, rule) == ["empty", None, "near_duplicate", None, "duplicate"]
    # Who is left of two that are alike has nobody to be compared with.
    assert why_not_ranked(answers_of(["a b", "a  b"], [1.0, 2.0]), rule) == ["alone", "near_duplicate"]


def test_an_answer_needs_a_finite_number_in_each_reward_that_ranks_and_in_no_other():
    answers = answers_of(["a", "b", "c", "d"], [1.0, None, 3.0, 4.0], [float("inf"), 2.0, None, 4.0])
    assert why_not_ranked(answers, AnswerRule(("sum",))) == [None, "not_scored", None, None]
    both = why_not_ranked(answers, AnswerRule(("sum", "avg")))
    assert both == ["non_finite", "not_scored", "not_scored", "alone"]


def pairs_with(*margins):
    answers = answers_of([f"t{number}" for number in range(2 * len(margins))], [0.0] * 2 * len(margins))
    return [Pair(answers, 2 * at, 2 * at + 1, 3, 3, margin) for at, margin in enumerate(margins)]


def test_answers_that_are_equal_by_every_reward_that_ranks_make_no_pair():
    answers = answers_of(["a", "b", "c", "d"], [1.0, 1.0, 1.0, 0.0], [0.5, 0.5, 0.2, 0.5])
    pairs = [Pair(answers, 0, bad, 3, 3, 1.0) for bad in (1, 2, 3)]

    def found(*rank_by):
        return filters.statuses(pairs, 0, filters.question_filters(FilterRule(equal=rank_by or None)))

    assert found() == ["kept"] * 3
    assert found("sum") == ["equal", "equal", "kept"]
    assert found("sum", "avg") == ["equal", "kept", "kept"]


def test_margins_below_the_least_and_above_the_most_are_dropped_by_name():
    rule = FilterRule(min_margin=0.5, max_margin=2.0, max_pairs=10)
    found = filters.statuses(pairs_with(0.4, 0.5, 1.0, 2.0, 2.1), 0, filters.question_filters(rule))
    assert found == ["min_margin", "kept", "kept", "kept", "max_margin"]


@pytest.mark.parametrize("most", [1, 2, 4, 5, 9])
def test_a_question_keeps_at_most_max_pairs(most):
    found = filters.statuses(pairs_with(1, 1, 1, 1, 1), 0, filters.question_filters(FilterRule(max_pairs=most)))
    assert found.count("kept") == min(most, 5)
    assert set(found) <= {"kept", "per_idx"}


def random_question(draw, num_rewards):
    number = draw.randrange(1, 14)
    # Few values, so that there are ties.
    rewards = [[draw.choice([draw.randrange(5), draw.random()]) for _ in range(number)] for _ in range(num_rewards)]
    texts = [" ".join(draw.choices("abcdefg", k=draw.randrange(1, 30))) + f" {at}" for at in range(number)]
    return answers_of(texts, *rewards)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_pairs_an_answer_with_itself_or_twice_the_same(strategy):
    draw = random.Random(1)
    for _ in range(300):
        answers = random_question(draw, draw.choice([1, 2]))
        names = tuple(answers.rewards)
        ranked = places_of(why_not_ranked(answers, AnswerRule(names)))
        rule = PairRule(draw.randrange(1, 6), 1000, strategy, right=1.0)
        found = pair_up(answers, ranked, names, rule, len)
        sides = [(pair.good, pair.bad) for pair in found]
        assert len(set(sides)) == len(sides)
        assert all(good != bad and {good, bad} <= set(ranked) for good, bad in sides)
        # By no strategy is the chosen answer below the rejected one by each reward.
        assert all(any(answers.rewards[name][g] >= answers.rewards[name][b] for name in names) for g, b in sides)


@pytest.mark.parametrize("strategy", ["cross", "aligned"])
def test_with_twice_the_rank_of_answers_chosen_is_never_below_rejected_by_any_reward(strategy):
    draw, pairs = random.Random(2), 0
    for _ in range(500):
        answers = random_question(draw, 2)
        ranked = places_of(why_not_ranked(answers, AnswerRule()))
        rule = PairRule(max(1, len(ranked) // 2), 1000, strategy)
        for pair in pair_up(answers, ranked, ("sum", "avg"), rule, len):
            pairs += 1
            assert pair.chosen_sum >= pair.rejected_sum
            assert pair.chosen_avg >= pair.rejected_avg
    assert pairs > 500
