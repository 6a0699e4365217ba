"""The page of the proof: figures in, proof.md with two plots out."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import figures
import jinja2
import matplotlib
import numpy as np
from claims import Claim, Table, percent, told
from experiment import BASELINE, ENGINE, REWARD_MODEL, Folders, Plan, Training, curve_over_k, curve_over_pairs, settings
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
# Of drawing an answer, as judge.py names them.
WAYS = ("sampled", "greedy")

TITLES = {
    BASELINE: "instruct model, untrained", ENGINE: "the engine's pairs", "oracle": "pairs by the truth (oracle)",
    "contrast": "contrast alone", "sft": "SFT on the engine's chosen", "random": "random pairs",
    "sft_random": "SFT on random answers",
    "length": "the longer one chosen", "reversed": "the engine's pairs reversed", "shuffled": "shuffled rewards",
}  # fmt: skip
INK, SOFT, GOOD, BAD = "#1d2433", "#5f6b7e", "#12805c", "#b54708"
# Of a number, which may stand on the line of the untrained model.
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def judged(folders: Folders, seeds: Iterable[int], name: str, way: str) -> np.ndarray:
    """The counts of one model's answers [S, N, C]; `way` is one of WAYS."""
    return np.array([json.loads(folders.judged(seed, name).read_text())[way] for seed in seeds], dtype=float)


def arms_table(folders: Folders, plan: Plan, way: str) -> Table:
    """The figures of all arms and of the untrained model."""
    return figures.table({name: judged(folders, plan.seeds, name, way) for name in (BASELINE, *plan.arms)})


def arms_text(tables: Mapping[str, Table]) -> str:
    """The arms as a Markdown table, most faithful first."""
    sampled, greedy = tables["sampled"], tables["greedy"]
    lines = [
        "| trained on | CHAIR_i | CHAIR_s | coverage | words | CHAIR_i, greedy | coverage, greedy |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(sampled, key=lambda name: sampled[name]["chair_i"].value):
        row = sampled[name]
        cells = [told(row["chair_i"]), percent(row["chair_s"].value), percent(row["coverage"].value),
                 f"{row['length'].value:.1f}", percent(greedy[name]["chair_i"].value),
                 percent(greedy[name]["coverage"].value)]  # fmt: skip
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def claims_text(found: list[Claim]) -> str:
    lines = ["| claim | asked | measured | |", "|---|---|---|---|"]
    lines += [f"| {one.text} | {one.asked} | {one.measured} | {'holds' if one.holds else '**does not hold**'} |"
              for one in found]  # fmt: skip
    return "\n".join(lines)


def areas_text(folders: Folders, plan: Plan) -> str:
    """Areas under the ROC, the mean over seeds with the least and the greatest."""
    by_seed = [json.loads(folders.areas(seed).read_text()) for seed in plan.seeds]
    lines = ["| reward | area | without length |", "|---|---|---|"]
    for name in by_seed[0]:
        cells = []
        for kind in ("area", "without_length"):
            values = [one[name][kind] for one in by_seed]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curve(folders: Folders, plan: Plan, points: list[Training]) -> dict[Training, figures.Interval]:
    """By point (its seed is the first one), the fall of CHAIR_i at T = 0.7 over all seeds of the curves."""
    found = {}
    for one in points:
        if one.seed != plan.curve_seeds[0]:
            continue
        counts = {name: judged(folders, plan.curve_seeds, name, "sampled") for name in (BASELINE, one.name(plan))}
        found[one] = figures.table(counts)[one.name(plan)]["fall"]
    return found


def curve_text(points: Mapping[Training, figures.Interval]) -> str:
    lines = ["| answers a question | strategy | pairs | fall of CHAIR_i, T = 0.7 |", "|---|---|---|---|"]
    for one, fall in points.items():
        strategy = "cross" if one.arm == ENGINE else one.arm
        lines.append(f"| {one.k} | {strategy} | {one.num_pairs} | {told(fall)} |")
    return "\n".join(lines)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color="#eef0f3")
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    # Without a salt of ours, and with the date, no two runs would give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "proof"}):
        figure.savefig(path, metadata={"Date": None})


def plot_arms(path: Path, table: Table) -> None:
    """CHAIR_i of each arm with its interval, the untrained model as a line."""
    names = sorted((name for name in table if name != BASELINE), key=lambda name: -table[name]["chair_i"].value)
    figure = Figure(figsize=(8, 0.55 * len(names) + 1), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _tidy(axes)
    base = table[BASELINE]["chair_i"]
    axes.axvspan(100 * base.low, 100 * base.high, color="#eef0f3")
    axes.axvline(100 * base.value, color=SOFT, linewidth=1.2)
    for place, name in enumerate(names):
        rate = table[name]["chair_i"]
        colour = GOOD if name == ENGINE else INK if name == "oracle" else SOFT if rate.high >= base.low else "#3c6df0"
        colour = BAD if rate.low > base.high else colour
        axes.plot([100 * rate.low, 100 * rate.high], [place, place], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot(100 * rate.value, place, "o", color=colour, markersize=7)
        axes.annotate(f"{100 * rate.value:.1f}", (100 * rate.value, place), (0, 7), textcoords="offset points",
                      ha="center", fontsize=9, color=colour, bbox=BEHIND)  # fmt: skip
    axes.set_yticks(range(len(names)), [TITLES[name] for name in names])
    axes.set_ylim(-0.6, len(names) - 0.2)
    axes.set_xlim(left=0)
    axes.set_xlabel(
        f"hallucinated objects of all mentioned, %, T = 0.7 (line: untrained, {100 * base.value:.1f})", color=INK
    )
    _save(figure, path)


def plot_curves(
    path: Path, over_pairs: Mapping[Training, figures.Interval], over_k: Mapping[Training, figures.Interval]
) -> None:
    """The fall of CHAIR_i over the number of pairs, and over k by both strategies."""
    figure = Figure(figsize=(8, 3.4), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    _line(left, [(one.num_pairs, fall) for one, fall in over_pairs.items()], GOOD, "k = 10, cross")
    for arm, colour, label, shift in ((ENGINE, GOOD, "cross", 0.97), ("mu_2sigma", "#3c6df0", "mu_2sigma", 1.03)):
        _line(right, [(shift * one.k, fall) for one, fall in over_k.items() if one.arm == arm], colour, label)
    for axes, label, ticks in (
        (left, "pairs", [one.num_pairs for one in over_pairs]),
        (right, "answers a question, k", sorted({one.k for one in over_k})),
    ):  # fmt: skip
        _tidy(axes)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(label, color=INK)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    left.set_ylabel("fall of hallucinated objects, %", color=INK)
    left.set_ylim(bottom=min(0, *(100 * fall.low for fall in (*over_pairs.values(), *over_k.values()))))
    _save(figure, path)


def _line(axes: Axes, points: list[tuple[float, figures.Interval]], colour: str, label: str) -> None:
    points = sorted(points, key=lambda point: point[0])
    places, falls = [place for place, _ in points], [fall for _, fall in points]
    axes.plot(places, [100 * fall.value for fall in falls], "o-", color=colour, label=label, markersize=5)
    axes.vlines(
        places, [100 * fall.low for fall in falls], [100 * fall.high for fall in falls], color=colour, linewidth=1.5
    )


def model_text(folders: Folders, plan: Plan) -> str:
    """The two models that everything is made from, untrained by it, on the pictures of all verdicts."""
    lines = ["| model | CHAIR_i, greedy | CHAIR_i, T = 0.7 | coverage, T = 0.7 |", "|---|---|---|---|"]
    for title, name in (("instruct model", BASELINE), ("reward model", REWARD_MODEL)):
        rates = {way: figures.table({BASELINE: judged(folders, plan.seeds, name, way)})[BASELINE] for way in WAYS}
        cells = (rates["greedy"]["chair_i"], rates["sampled"]["chair_i"], rates["sampled"]["coverage"])
        lines.append(f"| {title} | {' | '.join(told(cell) for cell in cells)} |")
    return "\n".join(lines)


def write(docs: Path, folders: Folders, plan: Plan, tables: Mapping[str, Table], found: list[Claim]) -> None:
    """docs/proof.md, docs/proof/arms.svg and curves.svg, and docs/proof/figures.json with the arms as numbers."""
    over_pairs, over_k = (curve(folders, plan, points(plan)) for points in (curve_over_pairs, curve_over_k))
    (docs / "proof").mkdir(exist_ok=True)
    plot_arms(docs / "proof/arms.svg", tables["sampled"])
    plot_curves(docs / "proof/curves.svg", over_pairs, over_k)
    as_numbers = {way: {arm: {key: asdict(one) for key, one in row.items()} for arm, row in table.items()}
                  for way, table in tables.items()}  # fmt: skip
    (docs / "proof/figures.json").write_text(json.dumps(as_numbers, indent=1) + "\n")
    template = jinja2.Template((HERE / "proof.md.j2").read_text(), undefined=jinja2.StrictUndefined)
    text = template.render(
        arms=arms_text(tables), claims=claims_text(found), models=model_text(folders, plan),
        areas=areas_text(folders, plan), over_pairs=curve_text(over_pairs), over_k=curve_text(over_k),
        plan=plan, settings=settings(),
    )  # fmt: skip
    (docs / "proof.md").write_text(text + "\n")
