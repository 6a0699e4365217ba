"""Pairs of a run with several sources of reward: which rewards rank, and what the files and the report say of them."""

import dataclasses
import json
import random
import re
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_page import Page
from run_files import hostile_rows, write
from stage2_world import digest, make_world, pairs_rows, publish
from validated import checked

from data_engine import schemas, stages
from data_engine.errors import UserError
from data_engine.job import worker
from data_engine.of_pairing import OWN, pairs_file
from data_engine.pipeline import pair_settings
from data_engine.pipeline.pair_settings import Settings, chosen_rewards
from data_engine.preferences.filters import FilterRule
from data_engine.preferences.strategies import STRATEGIES
from data_engine.reporting import page
from data_engine.stages import REWARD, SAMPLING, RunStages, Source, Stage
from data_engine.store.units import UnitResult

BOTH = RunStages(sources=("implicit", "made.up"))
ALONE = RunStages(sources=("made.up",))


@pytest.fixture
def made_up(monkeypatch) -> None:
    """A source whose stage writes a score, and whose rewards are that and its negative."""
    module = types.ModuleType("made_up")
    module.rewards = lambda computed, settings: {
        "made.up": computed["made_up"].scores, "made.down": -computed["made_up"].scores
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "made_up", module)
    stage = Stage("made_up", REWARD, schemas.scores, "none:none", None, (SAMPLING.name,))
    source = Source((stage,), "made_up:rewards", ("made.up", "made.down"), ("made.up",))
    monkeypatch.setitem(stages.SOURCES, "made.up", source)


@pytest.fixture
def world(made_up, tmp_path):
    return make_world(tmp_path / "world", num_questions=12, num_answers=8)


def score_of(row) -> float | None:
    """A third of the answers have none, or none that is finite."""
    kind = random.Random(f"{row['idx']} {row['sample_index']}").random()
    return None if kind < 0.2 else float("nan") if kind < 0.3 else round(kind, 1)


def publish_all(world, work_dir, order=lambda rows: None) -> None:
    world.publish(work_dir, order)
    for unit, span in enumerate(world.units()):
        idxs = set(world.questions().idx[span.start : span.stop])
        rows = [row for row in world.rows if row["idx"] in idxs]
        order(rows)
        rows = [{"idx": row["idx"], "sample_index": row["sample_index"], "score": score_of(row)} for row in rows]
        table = pa.Table.from_pylist(rows, schemas.scores(pa.string()))
        publish(work_dir, "made_up", unit, UnitResult(table, []))


def test_every_reward_of_the_run_has_its_columns_and_the_first_that_ranks_makes_the_margin(world, tmp_path):
    publish_all(world, tmp_path / "work")
    funnel = world.pair(tmp_path / "work", run_stages=BOTH, rank_by=("made.up", "implicit.avg"), distance=1000)
    rows = pairs_rows(tmp_path / "work")
    scores = {(row["idx"], row["sample_index"]): score_of(row) for row in world.rows}
    assert list(rows[0])[:12] == schemas.pairs(pa.string()).names[:12]
    assert list(rows[0])[12:] == [
        "margin", "chosen_implicit_min", "rejected_implicit_min", "chosen_implicit_last", "rejected_implicit_last",
        "chosen_made_up", "rejected_made_up", "chosen_made_down", "rejected_made_down",
    ]  # fmt: skip
    for row in rows:
        good, bad = (scores[row["idx"], row[f"{side}_index"]] for side in ("chosen", "rejected"))
        assert (row["chosen_made_up"], row["rejected_made_down"], row["margin"]) == (good, -bad, good - bad)
        assert good >= bad
        assert row["chosen_avg"] >= row["rejected_avg"]
    lost = list(scores.values())
    assert funnel.not_ranked["not_scored"] == lost.count(None) > 5
    assert funnel.not_ranked["non_finite"] == sum(score is not None and np.isnan(score) for score in lost) > 2


def test_a_reward_that_does_not_rank_keeps_no_answer_out(world, tmp_path):
    publish_all(world, tmp_path / "work")
    funnel = world.pair(tmp_path / "work", run_stages=BOTH)
    assert not funnel.not_ranked
    world.publish(tmp_path / "plain")
    world.pair(tmp_path / "plain")
    old = schemas.pairs(pa.string()).names
    assert [{name: row[name] for name in old} for row in pairs_rows(tmp_path / "work")] == pairs_rows(
        tmp_path / "plain"
    )
    assert digest(tmp_path / "work/dataset") == digest(tmp_path / "plain/dataset")


@pytest.mark.parametrize(
    ("sources", "rank_by", "told"),
    [
        (BOTH, ("implicit.avg",), {"implicit.avg": True, "made.up": False}),
        (BOTH, ("made.down",), {"made.down": True, "implicit.sum": False, "implicit.avg": False}),
        (BOTH, ("made.up", "implicit.last"), {"made.up": True, "implicit.last": True}),
        (ALONE, ("made.up",), {"made.up": True}),
    ],
)
def test_a_source_that_does_not_rank_is_summed_up_by_what_it_would_rank_by(world, tmp_path, sources, rank_by, told):
    publish_all(world, tmp_path / "work")
    funnel = world.pair(tmp_path / "work", run_stages=sources, rank_by=rank_by)
    totals = json.loads(pq.read_schema(pairs_file(tmp_path / "work", OWN)).metadata[b"reward_totals"])
    # In this order: what ranks comes first.
    assert [(name, total["ranks"]) for name, total in totals.items()] == list(told.items())
    by_question = {}
    for row in world.rows:
        if (score := score_of(row)) is not None and np.isfinite(score):
            by_question.setdefault(row["idx"], []).append(score)
    if "made.up" in told:
        scores = [score for found in by_question.values() for score in found]
        assert totals["made.up"]["mean"] == pytest.approx(sum(scores) / len(scores))
        assert totals["made.up"]["best"] == pytest.approx(sum(map(max, by_question.values())) / len(by_question))
    text = page.report_text(tmp_path / "work", world.questions(), funnel)
    table = text.partition("Rewards of all answers")[2].partition("</table>")[0]
    shown = [name if ranks else f"{name} (does not rank)" for name, ranks in told.items()]
    assert re.findall(r'<th scope="row">([^<]*)</th>', table) == shown


def test_without_the_implicit_reward_its_columns_are_null_and_the_report_shows_the_others(world, tmp_path):
    publish_all(world, tmp_path / "work")
    funnel = world.pair(tmp_path / "work", run_stages=ALONE, rank_by=ALONE.rank_by)
    rows = pairs_rows(tmp_path / "work")
    assert {row[f"{side}_{name}"] for row in rows for side in ("chosen", "rejected") for name in ("sum", "avg")} == {
        None
    }
    assert "chosen_implicit_min" not in rows[0]
    text = page.report_text(tmp_path / "work", world.questions(), funnel)
    assert "made.up, number of pairs" in text
    assert "implicit.sum of the answer" not in text
    shown = {(pair["idx"], *pair["answers"]): pair["rewards"] for pair in Page(text).pairs}
    key = tuple(rows[0][name] for name in ("idx", "chosen_index", "rejected_index"))
    expected = [rows[0][f"{side}_made_up"] for side in ("chosen", "rejected")]
    assert shown[key]["made.up"] == pytest.approx(expected, rel=1e-5)
    assert "implicit.sum" not in shown[key]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pairs_stay_within_a_question_and_the_order_of_rows_shows_in_no_strategy(world, tmp_path, strategy):
    right = 0.6 if strategy == "right_wrong" else None
    asked = {"run_stages": BOTH, "rank_by": ("made.up", "implicit.sum"), "strategy": strategy, "right": right,
             "near_duplicates": 0.5, "min_margin": 0.05, "max_pairs": 2}  # fmt: skip
    publish_all(world, tmp_path / "work")
    publish_all(world, tmp_path / "shuffled", order=random.Random(7).shuffle)
    for name in ("work", "shuffled"):
        world.pair(tmp_path / name, **asked)
    rows = pairs_rows(tmp_path / "work")
    assert digest(tmp_path / "work") != digest(tmp_path / "shuffled")
    assert rows == pairs_rows(tmp_path / "shuffled")
    texts = {(row["idx"], row["sample_index"]): row["answer"] for row in world.rows}
    assert len(rows) > 3
    for row in rows:
        for side in ("chosen", "rejected"):
            assert row[side] == texts[row["idx"], row[f"{side}_index"]]


def test_rank_by_is_that_of_the_implicit_reward_or_of_the_first_source(made_up):
    assert chosen_rewards(None, BOTH) == ("implicit.sum", "implicit.avg")
    assert chosen_rewards(None, ALONE) == ("made.up",)
    assert chosen_rewards(None, RunStages(sources=("contrast", "made.up"))) == ("contrast.avg",)
    assert chosen_rewards(" made.down , implicit.min", BOTH) == ("made.down", "implicit.min")
    with pytest.raises(UserError, match=r'rank_by names "implicit.sum", which no .* known: made.up, made.down'):
        chosen_rewards("implicit.sum", ALONE)


def test_what_a_further_filter_is_told_is_the_setting_of_its_name(monkeypatch):
    """As docs/adding.md has it: it did not reach the filter, which then never ran, without a word."""
    further = dataclasses.make_dataclass("Rule", [("max_words", int | None, None)], bases=(FilterRule,), frozen=True)
    monkeypatch.setattr(pair_settings, "FilterRule", further)
    settings = dataclasses.make_dataclass("More", [("max_words", int | None, None)], bases=(Settings,), frozen=True)
    rule = settings(max_words=7, max_margin=2.0).filter_rule
    assert (rule.max_words, rule.max_margin, rule.min_margin, rule.max_pairs) == (7, 2.0, None, 3)
    # A flag that is no setting of a pairing is told at once.
    with pytest.raises(AttributeError, match="max_words"):
        _ = Settings().filter_rule


def test_pairs_of_equal_rewards_are_dropped_but_by_the_implicit_reward_alone_or_where_words_count():
    assert Settings().filter_rule.equal is None
    assert Settings(rank_by=("implicit.min",)).filter_rule.equal is None
    assert Settings(rank_by=("implicit.avg", "rule")).filter_rule.equal == ("avg", "rule")
    assert Settings(rank_by=("rule",)).filter_rule.equal == ("rule",)
    assert Settings(rank_by=("rule",), length_alpha=0.1).filter_rule.equal is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_by": "implicit.sun"}, 'rank_by names "implicit.sun".*did you mean implicit.sum'),
        ({"strategy": "crss"}, 'unknown strategy "crss"; known: cross'),
    ],
)
def test_a_run_and_validate_refuse_what_no_pairing_knows_before_any_work(config, tmp_path, settings, message):
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:2])
    for check in (worker.run, checked):
        with pytest.raises(UserError, match=message):
            check(config(dataset, work_dir=str(tmp_path / "work"), **settings))
    assert not (tmp_path / "work/run.json").exists()


def test_a_run_pairs_by_its_flags(config, tmp_path):
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:3])
    settings = {"strategy": "best_worst", "rank_by": "implicit.avg", "min_margin": -1.0, "distance": 1000}
    # Of the one pair that there is, the balance of lengths may leave nothing.
    assert worker.run(config(dataset, work_dir=str(tmp_path / "work"), **settings)) in (0, 4)
    told = json.loads(pq.read_schema(tmp_path / "work/pairs/pairs.parquet").metadata[b"settings"])
    assert {name: told[name] for name in settings} == settings
    rows = pairs_rows(tmp_path / "work")
    assert rows
    for row in rows:
        assert row["margin"] == row["chosen_avg"] - row["rejected_avg"]
