"""What a page says of its pairs in words: the result at its top, rewards by one name, and counts of one."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_page import Page
from stage2_world import make_world

from data_engine.preferences.funnel import Funnel
from data_engine.reporting import about, plots
from data_engine.reporting.compare import comparison_text
from data_engine.reporting.page import report_text
from data_engine.reporting.pair_numbers import PairNumbers
from data_engine.reporting.picture import picture

NAN = float("nan")


def numbers(ranking: tuple[str, ...] = ("sum", "avg"), **columns: list) -> PairNumbers:
    """Two kept pairs, and a dropped one between them."""
    words = {"chosen_words": [3, 90, 4], "rejected_words": [5, 90, 8]}
    arrays = {name: np.array(values, float) for name, values in columns.items()}
    arrays |= {name: np.array(values, np.int32) for name, values in words.items()}
    names = {"sum": "implicit.sum", "rule": "rule"}
    return PairNumbers(None, np.array([0, 1, 0], np.int32), ["kept", "per_idx"], arrays, names, ranking)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), num_questions=8)


def test_the_top_has_both_sides_of_the_kept_pairs_and_what_was_left_out_or_cut():
    found = numbers(chosen_sum=[1, 50, 2], rejected_sum=[-1, 50, -0.5])
    funnel, ended = Funnel(questions=1200, quarantined=3), Counter(length=25, stop=3975)
    assert about.result_rows(found, funnel, ended) == [
        ("Kept pairs", ["implicit.sum: chosen +1.500, rejected -0.750 on average",
                        "words: chosen 3.5, rejected 6.5 on average"]),
        ("Left out", ["3 of 1,200 questions"]),
        ("Cut short", ["25 of 4,000 answers, by --max_new_tokens"]),
    ]  # fmt: skip
    [(name, _)] = about.result_rows(found, Funnel(questions=1200), Counter(stop=4000))
    assert name == "Kept pairs"
    assert about.result_rows(found, Funnel(questions=1, quarantined=1), Counter(length=1))[1:] == [
        ("Left out", ["1 of 1 question"]), ("Cut short", ["1 of 1 answer, by --max_new_tokens"])
    ]  # fmt: skip


def test_the_reward_that_ranks_is_told_first_whatever_stands_before_it_in_the_file():
    sides = {"chosen_rule": [7, 0, 9], "rejected_rule": [1, 0, 3]}
    found = numbers(("rule",), chosen_sum=[1, 1, 1], rejected_sum=[0, 0, 0], **sides)
    [(_, lines)] = about.result_rows(found, Funnel(), Counter())
    assert lines[0] == "rule: chosen +8.000, rejected +2.000 on average"


def test_a_reward_that_one_answer_lacks_is_shown_of_the_others():
    found = numbers(chosen_sum=[1, 1, 1], rejected_sum=[0, 0, 0], chosen_rule=[NAN, 0, 9], rejected_rule=[1, 0, NAN])
    assert found.rewards() == ["sum", "rule"]
    none = numbers(chosen_sum=[NAN, 1, NAN], rejected_sum=[NAN, 1, NAN], chosen_rule=[1, 1, 1], rejected_rule=[0, 0, 0])
    assert none.rewards() == ["rule"]


def test_a_reward_has_one_name_on_the_whole_page(world, tmp_path):
    world.publish(tmp_path)
    page = Page(report_text(tmp_path, world.questions(), world.pair(tmp_path)))
    names = {"implicit.sum", "implicit.avg"}
    assert {name for pair in page.pairs for name in pair["rewards"]} == names
    assert names | {"implicit.sum and implicit.avg"} <= set(page.texts)
    assert {"implicit.sum of the answer, number of pairs", "implicit.avg a token, number of pairs",
            "Margin of implicit.sum, % of kept and of dropped pairs"} <= set(page.texts)  # fmt: skip


def test_the_cards_picture_shows_the_reward_that_ranks_in_whole_pairs_and_words(world, tmp_path, monkeypatch):
    world.publish(tmp_path)
    funnel, drawn = world.pair(tmp_path, rank_by=("implicit.avg",), max_pairs=1), []
    monkeypatch.setattr(plots, "_png", lambda figure, dpi: drawn.append(figure))
    picture(tmp_path / "pairs/pairs.parquet", funnel)
    rewards, words, *_ = drawn[0].axes
    assert rewards.get_xlabel() == "reward implicit.avg (dashed: mean)"
    few = [*rewards.get_yticks(), *words.get_xticks(), *words.get_yticks()]
    assert [tick for tick in few if tick % 1] == []
    rows = [row for row in pq.read_table(tmp_path / "pairs/pairs.parquet").to_pylist() if row["status"] == "kept"]
    means = [line.get_xdata()[0] for line in rewards.lines]
    assert means == pytest.approx([np.mean([row[f"{side}_avg"] for row in rows]) for side in ("rejected", "chosen")])


def one_pair(folder):
    """A run of one question, whose two answers make one pair."""
    world = make_world(folder / "world", num_questions=1, num_answers=2)
    world.rows[0] |= {"answer": "A cat.", "instruct": [-2.0], "reward": [-1.0]}
    world.rows[1] |= {"answer": "A dog.", "instruct": [-1.0], "reward": [-2.0]}
    world.publish(folder / "work")
    return world, world.pair(folder / "work", rank=1)


def test_one_pair_of_one_question_is_told_as_one(tmp_path):
    world, funnel = one_pair(tmp_path)
    (tmp_path / "work/run.json").write_text(json.dumps({"config": {"sample_k": 1}}))
    texts = Page(report_text(tmp_path / "work", world.questions(), funnel)).texts
    assert "1 pair from 2 answers to 1 question" in texts
    assert "1, 1 answer each" in texts
    assert "Shown: the one pair that is kept." in texts


def test_two_pairings_that_keep_the_same_pairs_are_told_so(tmp_path):
    world, own = one_pair(tmp_path)
    other = tmp_path / "work/pairs/other.parquet"
    other.write_bytes((tmp_path / "work/pairs/pairs.parquet").read_bytes())
    page = Page(comparison_text(tmp_path / "work", world.questions(), (("pairs", own), ("other", own))))
    assert page.pairs == []
    assert "No pair is kept by one of the two alone." in page.texts
    assert not [text for text in page.texts if "0 pairs" in text or "candidate pair:" in text]


def test_a_name_that_the_pairs_do_not_tell_of_is_that_of_the_column(tmp_path):
    """Pairs of earlier versions have no totals of their rewards."""
    path = tmp_path / "pairs.parquet"
    columns = {"status": ["kept"], "chosen_words": [1], "rejected_words": [1], "chosen_contrast_avg": [1.0],
               "rejected_contrast_avg": [0.0]}  # fmt: skip
    pq.write_table(pa.table(columns), path)
    found = PairNumbers.read(path)
    assert [found.called(name) for name in ("sum", "contrast_avg")] == ["implicit.sum", "contrast_avg"]
