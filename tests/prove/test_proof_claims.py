"""What the proof claims holds or fails at its bounds."""

import claims
import pytest
from figures import Interval


def row(fall, low, high, coverage_change=0.0):
    return {"fall": Interval(fall, low, high), "coverage_change": Interval(coverage_change, 0, 0),
            "of_oracle": Interval(0.85, 0.8, 0.9)}  # fmt: skip


@pytest.fixture
def table():
    return {
        "engine": row(0.62, 0.51, 0.7), "random": row(0.1, 0.0, 0.2), "length": row(0.0, -0.1, 0.1),
        "sft": row(0.2, 0.1, 0.3), "reversed": row(-1.0, -1.2, -0.8), "shuffled": row(0.1, 0.0, 0.2),
    }  # fmt: skip


def failed(found):
    return [one.text for one in found if not one.holds]


def test_all_claims_hold_where_all_bounds_are_kept(table):
    assert failed(claims.of_full(table)) == []
    assert failed(claims.of_quick(table)) == []


@pytest.mark.parametrize(
    ("arm", "figures", "text"),
    [
        ("engine", row(0.59, 0.51, 0.7), "The engine's pairs lower"),
        ("engine", row(0.62, 0.49, 0.7), "The engine's pairs lower"),
        ("engine", row(0.62, 0.51, 0.7, coverage_change=-0.021), "Answers do not leave out more"),
        ("engine", row(0.62, 0.51, 0.7) | {"of_oracle": Interval(0.79, 0.7, 0.9)}, "They reach the most"),
        ("random", row(0.16, 0.0, 0.2), "Random pairs do little"),
        ("random", row(0.1, 0.0, 0.52), "random falls less"),
        ("length", row(0.0, -0.1, 0.52), "length falls less"),
        ("sft", row(0.2, 0.1, 0.52), "sft falls less"),
        ("reversed", row(-0.1, -0.3, 0.01), "Reversed pairs"),
    ],
)
def test_each_bound_is_held_against_its_own_figure(table, arm, figures, text):
    [only] = failed(claims.of_full(table | {arm: figures}))
    assert only.startswith(text)


def test_shuffled_rewards_fail_the_quick_check(table):
    assert failed(claims.of_quick(table, "shuffled")) != []
