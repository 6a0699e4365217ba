"""The page of the proof: every figure on it is one of the results, and the README quotes it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import claims
import experiment
import figures
import matplotlib
import numpy as np
import page
import pytest
from experiment import BASELINE, FULL, REWARD_MODEL, Folders

ROOT = Path(__file__).parents[2]
# Share of hallucinated objects that each arm is given here.
RATES = {
    BASELINE: 0.16, REWARD_MODEL: 0.03, "engine": 0.05, "random": 0.15, "reversed": 0.3, "length": 0.2, "sft": 0.08,
    "oracle": 0.045, "contrast": 0.14, "sft_random": 0.13,
}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """A whole proof's results, made up: 200 pictures of 4 objects a seed, of which each arm gets its share wrong."""
    plan, folders, rng = replace(FULL, num_pictures=200), Folders(tmp_path / "prove"), np.random.default_rng(0)
    trainings = [(one.seed, one.arm, one.name(plan)) for one in experiment.trainings(plan)]
    models = [(seed, name, name) for seed in plan.seeds for name in (BASELINE, REWARD_MODEL)]
    for seed, arm, name in trainings + models:
        wrong = rng.binomial(4, RATES.get(arm, 0.1), size=plan.num_pictures)
        counts = [[4, int(one), 4 - int(one), 4, 12] for one in wrong]
        place = folders.judged(seed, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"sampled": counts, "greedy": counts}))
    for seed in plan.seeds:
        areas = {"implicit.avg": {"area": 0.9 + seed / 100, "without_length": 0.8}}
        folders.areas(seed).write_text(json.dumps(areas))
    return plan, folders


@pytest.fixture
def pages(results, tmp_path):
    """The page of the same results, made twice."""
    plan, folders = results
    tables = {way: page.arms_table(folders, plan, way) for way in page.WAYS}
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        page.write(folder, folders, plan, tables, claims.of_full(tables["sampled"]))
    return tmp_path / "one", tmp_path / "other"


def test_the_page_has_all_arms_claims_curves_and_plots_and_the_same_results_make_the_same_files(pages):
    folder, other = pages
    text = (folder / "proof.md").read_text()
    for name in FULL.arms:
        assert f"| {page.TITLES[name]} |" in text
    # 0.91 to 0.95 over five seeds.
    assert "| implicit.avg | 0.930 (0.910 to 0.950) | 0.800 (0.800 to 0.800) |" in text
    assert [line.split(" | ")[1] for line in text.splitlines() if re.match(r"\| 20 \|", line)] == ["cross", "mu_2sigma"]
    assert len(re.findall(r"\| 10 \| cross \| (?:250|500|1000|2000) \|", text)) == 4 + 1
    assert "{{" not in text
    for plot in re.findall(r"\((proof/\w+\.svg)\)", text):
        assert (folder / plot).read_text().startswith("<?xml")
    numbers = json.loads((folder / "proof/figures.json").read_text())
    assert numbers["sampled"]["engine"]["chair_i"]["value"] == pytest.approx(0.05, abs=0.01)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 4
    for file in files:
        assert (folder / file).read_bytes() == (other / file).read_bytes()


def luminance(colour: str) -> float:
    """Of WCAG 2.2, of a colour as #rrggbb."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_picture_of_the_arms_is_of_the_published_figures_in_colours_that_can_be_read_on_white(tmp_path):
    arms = json.loads((ROOT / "docs/proof/figures.json").read_text())["sampled"]
    table = {arm: {key: figures.Interval(**one) for key, one in row.items()} for arm, row in arms.items()}
    page.plot_arms(tmp_path / "arms.svg", table)
    drawn = (ROOT / "docs/proof/arms.svg").read_text()
    for colour in {page.INK, page.SOFT, page.GOOD, page.BAD, "#3c6df0"}:
        assert colour in drawn
        # Of text, by WCAG 2.2, 1.4.3.
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5
    if matplotlib.__version__ == re.search(r"Matplotlib v([\d.]+)", drawn)[1]:
        assert (tmp_path / "arms.svg").read_text() == drawn


def test_the_readme_quotes_the_page():
    text = (ROOT / "README.md").read_text()
    numbers = json.loads((ROOT / "docs/proof/figures.json").read_text())["sampled"]
    fall = numbers["engine"]["fall"]
    rates = [f"{100 * numbers[name]['chair_i']['value']:.1f} %" for name in (BASELINE, "engine")]
    falls = [f"{100 * one['fall']['value']:.0f} %" for one in (numbers["engine"], numbers["random"])]
    quoted = [*rates, *falls, f"{100 * fall['low']:.0f} to {100 * fall['high']:.0f} %"]
    proof = next(part for part in text.split("\n- **") if "docs/proof.md" in part)
    assert [figure for figure in quoted if figure not in " ".join(proof.split())] == []
