"""Figures of the report and of the card's picture, by hand: percents, means, shares, and where charts draw them."""

import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from report_page import Page
from stage2_world import make_world

from data_engine import schemas
from data_engine.preferences.funnel import Funnel
from data_engine.preferences.reward_totals import RewardTotals
from data_engine.reporting import charts, facts, plots
from data_engine.reporting.compare import comparison_text, margin_chart
from data_engine.reporting.page import report_text
from data_engine.reporting.pair_numbers import PairNumbers

FUNNEL = Funnel(
    questions=4, quarantined=1, answers=20, not_ranked=Counter(empty=5), ranked=15, candidate_pairs=10,
    dropped=Counter(identical=4), written=6,
)  # fmt: skip


def test_a_line_of_the_funnel_is_a_percent_of_what_came_in_last():
    assert {bar["name"]: bar["percent"] for bar in facts.funnel_bars(FUNNEL)} == {
        "questions": 100, "quarantined": 25,
        "answers": 100, "not ranked: empty": 25, "ranked answers": 75,
        "candidate pairs": 100, "dropped by identical": 40, "written": 60,
    }  # fmt: skip


def test_lengths_are_told_before_and_after_the_filters():
    # The second and the last pair are dropped.
    words = {"chosen_words": [10, 4, 3, 7], "rejected_words": [6, 4, 5, 1]}
    columns = {name: np.array(values, np.int32) for name, values in words.items()}
    numbers = PairNumbers(None, np.array([0, 1, 0, 1], np.int32), ["kept", "per_idx"], columns)
    assert facts.length_table(numbers) == [
        ("", "pairs", "words of chosen", "words of rejected", "mean difference", "chosen is longer", "equal"),
        ("before: all candidates", "4", "6.0", "4.0", "+2.00", "50.0 %", "25.0 %"),
        ("after: kept", "2", "6.5", "5.5", "+1.00", "50.0 %", "0.0 %"),
    ]


def test_a_reward_over_all_answers_is_told_by_its_mean_best_and_worst(tmp_path):
    path, means = tmp_path / "pairs.parquet", {"mean": 0.5, "best": 0.75, "worst": -0.25}
    told = {"rule": means | {"answers": 4000, "questions": 1000, "equal": 7}, "critic": RewardTotals().means()}
    pq.write_table(pa.table({}, metadata={"reward_totals": json.dumps(told)}), path)
    assert facts.reward_table(path) == [
        ("reward", "answers", "mean", "best of a question", "worst of a question", "questions", "all equal"),
        ("rule", "4,000", "+0.5", "+0.75", "-0.25", "1,000", "7"),
        ("critic", "0", "", "", "", "0", "0"),
    ]


def test_ends_of_answers_are_shares_of_all_answers():
    assert facts.finish_table({"length": 1, "stop": 3})[1:] == [("stop", "3", "75.0 %"), ("length", "1", "25.0 %")]


def test_a_histograms_dashed_line_stands_at_the_mean():
    # Five whole bins, from -0.5 to 4.5; the mean is 1, 0.3 of the way, between 72 and 510 pixels.
    drawn = charts.histogram([charts.Series("kept", np.array([0, 0, 0, 4]), "kept")], "Words")
    assert re.search(r'class="mean kept" x1="([^"]*)" x2="([^"]*)"', drawn).groups() == ("203.4", "203.4")


@pytest.mark.parametrize(
    ("values", "below"),
    [
        # Whole numbers are bins of their own: the axis goes from -0.5 to 4.5, and from 2.5 to 14.5.
        ([0, 0, 0, 4], ["0", "1", "2", "3", "4"]),
        ([3, 14], ["4", "6", "8", "10", "12", "14"]),
    ],
)
def test_round_numbers_stand_below_a_histogram_from_the_first_to_the_last_within_its_axis(values, below):
    drawn = charts.histogram([charts.Series("kept", np.array(values), "kept")], "Words")
    assert re.findall(r'text-anchor="middle">([^<]*)<', drawn) == below


def test_margins_of_two_pairings_are_those_of_their_kept_pairs_by_their_reward(tmp_path):
    path = tmp_path / "pairs.parquet"
    settings = json.dumps({"rank_by": "contrast.avg,implicit.sum"})
    empty = schemas.pairs(pa.string()).empty_table()
    pq.write_table(empty.replace_schema_metadata({"settings": settings}), path)
    numbers = dataclasses.replace(
        PairNumbers.read(path), status=np.array([0, 1, 0], np.int32), statuses=["kept", "per_idx"],
        columns={"margin": np.array([1.0, 9.0, 2.0])},
    )  # fmt: skip
    title, drawn = margin_chart("mine", numbers)
    assert title == "mine: margin of contrast.avg, number of kept pairs"
    assert "kept: mean +1.500 of 2" in drawn


def test_a_pair_has_its_own_disagreement_of_rewards_on_both_pages(tmp_path):
    """Of each reward's order of the pairs by chosen - rejected: the share of the pairs below, ties by half."""
    world, work = make_world(tmp_path / "world", num_questions=12), tmp_path / "work"
    world.publish(work)
    wide = world.pair(work, distance=25)
    (work / "pairs/pairs.parquet").rename(work / "pairs/wide.parquet")
    own = world.pair(work, distance=6)
    both = (("pairs", own), ("wide", wide))
    shown = {"pairs": Page(report_text(work, world.questions(), own)).pairs}
    compared = Page(comparison_text(work, world.questions(), both)).pairs
    shown["wide"] = [pair for pair in compared if pair["status"] == "only wide"]
    for name, pairs in shown.items():
        rows = pq.read_table(work / f"pairs/{name}.parquet").to_pylist()
        orders = [[row[f"chosen_{reward}"] - row[f"rejected_{reward}"] for row in rows] for reward in ("sum", "avg")]
        places = [[(sum(other < one for other in order) + (order.count(one) - 1) / 2) / (len(order) - 1)
                   for one in order] for order in orders]  # fmt: skip
        expected = {(row["idx"], row["chosen_index"], row["rejected_index"]): abs(one - other)
                    for row, one, other in zip(rows, *places, strict=True)}  # fmt: skip
        found = {(pair["idx"], *pair["answers"]): pair["disagreement"] for pair in pairs}
        assert found == pytest.approx({key: expected[key] for key in found}, abs=1e-5)
        assert len(set(found.values())) > 2


def test_a_span_of_a_rank_is_drawn_where_it_was_and_as_long():
    # 20 s between 90 and 510 pixels.
    drawn = charts.timeline([("rank 0", [(10.0, 15.0, "a"), (15.0, 20.0, "b")])], {"a": 0, "b": 1})
    assert re.findall(r'x="([^"]*)" y="8" width="([^"]*)"', drawn) == [("300.0", "105.0"), ("405.0", "105.0")]


@pytest.fixture
def picture(monkeypatch) -> list:
    """The axes of the card's picture of two pairs: rewards, lengths, the bar of their colours, and the funnel."""
    made: list[Figure] = []
    monkeypatch.setattr(plots, "_png", lambda figure, dpi: made.append(figure))
    columns = {"chosen_sum": [3.0, 5.0], "rejected_sum": [1.0, 2.0], "chosen_words": [5, 5], "rejected_words": [1, 1]}
    plots.summary({name: np.array(values) for name, values in columns.items()}, "sum", [
        (name.strip(), count) for name, count in FUNNEL.lines()
    ])  # fmt: skip
    return made[0].axes


def test_the_pictures_dashed_lines_stand_at_the_mean_of_each_side(picture):
    drawn = {line.get_color(): list(line.get_xdata()) for line in picture[0].lines}
    assert drawn == {plots.CHOSEN: [4.0, 4.0], plots.REJECTED: [1.5, 1.5]}


def test_the_picture_has_words_of_rejected_to_the_right_and_of_chosen_upwards(picture):
    assert picture[1].get_xlabel() == "words in rejected (mean 1.0)"
    assert picture[1].get_ylabel() == "words in chosen (mean 5.0)"
    counts = np.ma.filled(picture[1].collections[0].get_array(), 0).reshape(6, 6)
    assert np.argwhere(np.nan_to_num(counts) > 0).tolist() == [[5, 1]]


def test_a_bar_of_the_pictures_funnel_is_a_share_of_what_came_in_last(picture):
    bars = [bar.get_width() for axes in picture[2:] for container in axes.containers for bar in container]
    assert bars == [1, 0.25, 1, 0.25, 0.75, 1, 0.4, 0.6]
