"""The page of a loop: its numbers and lines, from facts made by hand."""

import json
import re
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from bound_run import Run

from data_engine.config import RunConfig
from data_engine.preferences.funnel import Funnel
from data_engine.reporting.course import RoundFacts, text
from data_engine.rounds import page
from data_engine.rounds.places import Round


def facts(number: int, mean: float, **more: object) -> RoundFacts:
    totals = {"mean": mean, "best": mean + 1, "worst": mean - 1, "answers": 40, "questions": 1234, "equal": 5}
    funnel = Funnel(questions=1240, answers=12400, ranked=9000, candidate_pairs=3000, written=2500)
    told = {"words": (14.24, 15.86), "training_s": 90.0} | more
    return RoundFacts(number, f"model <{number}>", funnel, {"implicit.avg": totals}, told["words"],
                      told["training_s"], f"round-{number}/run/report/index.html")  # fmt: skip


def rows(page: str) -> list[list[str]]:
    found = re.findall(r"<tr>(.*?)</tr>", page)
    return [re.findall(r">([^<]*)</t[hd]>", row) for row in found]


def test_each_round_has_its_counts_words_and_time():
    page = text("a loop", [facts(1, -0.5), facts(2, 0.25, training_s=None), facts(3, 0.5, words=None)], [])
    shown = rows(page)
    assert shown[1] == ["1", "1,240", "12,400", "9,000", "2,500", "14.2", "15.9", "1.5 min"]
    assert shown[2][-1] == "to come"
    assert shown[3][5:7] == ["", ""]
    assert ["2", "+1.25", "+0.25", "-0.75", "1,234", "5"] in shown
    assert "<title>Rounds of a loop</title>" in page
    assert 'answers of model &lt;1&gt;; <a href="round-1/run/report/index.html">' in page


def test_lines_go_through_the_rewards_of_the_rounds():
    page = text("a loop", [facts(1, 0.0), facts(2, 1.0), facts(3, 0.5)], [])
    lines = re.findall(r'<polyline class="course (\w+)" points="([^"]*)"', page)
    assert [kind for kind, _ in lines] == ["s0", "s1", "s2"]
    points = [[tuple(map(float, point.split(","))) for point in line.split()] for _, line in lines]
    for line in points:
        (x1, y1), (x2, y2), (x3, y3) = line
        assert x2 - x1 == x3 - x2 > 0
        # Up is less on a screen.
        assert y2 < y3 < y1
        assert abs((y1 - y3) * 2 - (y1 - y2)) < 0.3
    best, mean, worst = points
    assert all(a[1] < b[1] < c[1] for a, b, c in zip(best, mean, worst, strict=True))


def test_a_round_without_a_number_has_no_point_and_no_mean():
    none = facts(2, 0.0)
    none = replace(none, rewards={name: dict.fromkeys(totals, 0) for name, totals in none.rewards.items()})
    page = text("a loop", [facts(1, 5.0), none, facts(3, 6.0)], [])
    assert page.count("<circle") == 6
    assert ["2", "", "", "", "0", "0"] in rows(page)


def test_of_many_rounds_some_numbers_are_written_below():
    page = text("a loop", [facts(number, 0.1 * number) for number in range(1, 26)], [])
    [below] = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    bottom = max(re.findall(r'<text x="[\d.]+" y="(\d+)" text-anchor="middle">', below), key=int)
    numbers = re.findall(rf'<text x="[\d.]+" y="{bottom}" text-anchor="middle">(\d+)<', below)
    assert list(map(int, numbers)) == list(range(1, 26, 3))


def test_one_round_and_equal_rewards_are_drawn_too():
    totals = dict.fromkeys(("mean", "best", "worst"), 1.0) | {"answers": 4, "questions": 2, "equal": 2}
    one = RoundFacts(1, "m", Funnel(), {"rule": totals}, None, None, "r")
    assert '<circle class="s0"' in text("a loop", [one], [])


def test_it_is_said_where_rewards_of_two_rounds_are_no_one_scale():
    told = "Another model gives this reward in each round"
    assert told not in text("a loop", [facts(1, 0.0)], ["contrast"])
    assert told in text("a loop", [facts(1, 0.0)], ["implicit"])


@pytest.fixture(scope="module")
def looped(tmp_path_factory, one_thread):
    """The folder of a loop with two rounds, of which the second has begun, and the run of the first."""
    run, folder = Run(tmp_path_factory.mktemp("page") / "run").make(), tmp_path_factory.mktemp("page") / "my loop"
    run.work = Round(folder, 1).run
    (Round(folder, 2).run / "sampled_answer").mkdir(parents=True)
    assert run.start(sample_k=6, max_new_tokens=12, max_pairs=1, device="cpu") == 0
    return folder, run


def test_the_page_is_of_the_rounds_whose_pairs_are_made(looped):
    folder, run = looped
    flags = {f"{role}_model_path": str(run.folder / role) for role in ("instruct", "reward")}
    loop = RunConfig(**flags, dataset_path="q", work_dir="elsewhere")
    page.write(loop, folder)
    path = folder / "index.html"
    shown = rows(path.read_text())
    pairs = pq.read_table(run.work / "pairs/pairs.parquet").to_pylist()
    kept = [row for row in pairs if row["status"] == "kept"]
    assert 0 < len(kept) < len(pairs)
    words = [f"{sum(row[f'{side}_words'] for row in kept) / len(kept):.1f}" for side in ("chosen", "rejected")]
    assert [row for row in shown[1:] if len(row) == 8] == [
        ["1", "5", "30", shown[1][3], str(len(kept)), *words, "to come"]
    ]
    assert f"answers of {run.folder}/instruct; " in path.read_text()
    told = "Another model gives this reward in each round"
    assert told in path.read_text()
    page.write(RunConfig(**flags, reference_model_path="sft", dataset_path="q", work_dir="elsewhere"), folder)
    assert told not in path.read_text()
    Round(folder, 1).trained.write_text(json.dumps({"seconds": 90, "train": "sh"}))
    page.write(loop, folder)
    assert "1.5 min" in path.read_text()
    before = path.stat()
    page.write(loop, folder)
    assert path.stat() == before


@pytest.mark.parametrize("damage", ["removed", "cut off"])
def test_a_round_whose_pairs_are_gone_or_damaged_is_left_off_the_page(looped, tmp_path, caplog, damage):
    """The rounds behind it go on, and are told."""
    run, path = looped[1], tmp_path / "index.html"
    flags = {f"{role}_model_path": str(run.folder / role) for role in ("instruct", "reward")}
    loop = RunConfig(**flags, dataset_path="q", work_dir="elsewhere")
    for number in (2, 11):
        shutil.copytree(run.work, Round(tmp_path, number).run)
    pairs = Round(tmp_path, 2).run / "pairs/pairs.parquet"
    if damage == "removed":
        shutil.rmtree(pairs.parent)
    else:
        pairs.write_bytes(pairs.read_bytes()[:-20])
    page.write(loop, tmp_path)
    assert [row[0] for row in rows(path.read_text()) if len(row) == 8] == ["round", "11"]
    assert [record.message.split(":")[0] for record in caplog.records] == (
        ["round 2 is not on the page"] if damage == "cut off" else []
    )


def test_a_reward_by_which_no_round_ranks_has_its_course_and_that_is_said():
    told, totals = "No pair is made by this reward", dict.fromkeys(("mean", "best", "worst"), 1.0)
    totals |= {"answers": 4, "questions": 2, "equal": 0}

    def page(*ranks: bool) -> str:
        rounds = [
            RoundFacts(
                number, "m", Funnel(), {"implicit.avg": totals, "yesno": totals | {"ranks": it}}, None, None, "r"
            )
            for number, it in enumerate(ranks, 1)
        ]
        return text("a loop", rounds, [])

    assert page(False, False).count(told) == 1
    assert page(False, False).index("<h2>yesno</h2>") < page(False, False).index(told)
    assert told not in page(False, True)
    assert page(False, False).count("<svg") == 2
