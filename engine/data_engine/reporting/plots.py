"""The picture of an export's card: numbers in, PNG bytes out; the same numbers give the same bytes."""

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_engine.reporting import charts

CHOSEN, REJECTED, SOFT = "#12805c", "#b54708", "#98a2b3"
NUM_BINS = 40
# A line of the name of a bar.
LABEL_LETTERS = 40


def summary(columns: Mapping[str, np.ndarray], reward: str, funnel: Sequence[tuple[str, int]]) -> bytes:
    """A reward, lengths and the funnel on one white picture, which is readable at a width of 800 pixels on any page."""
    funnel = [(textwrap.fill(name, LABEL_LETTERS), count) for name, count in funnel]
    height = 0.3 + 0.24 * sum(1 + name.count("\n") for name, _ in funnel)
    # 1,600 pixels wide, for dense screens; an inch is 100 pixels where it is shown at 800.
    figure = Figure(figsize=(8, 3.2 + height), layout="constrained", facecolor="white")
    rows = figure.subfigures(2, 1, height_ratios=(3.2, height))
    rewards, words = rows[0].subplots(1, 2)
    _draw_rewards(rewards, columns[f"chosen_{reward}"], columns[f"rejected_{reward}"])
    rewards.set_xlabel(f"reward {reward} (dashed: mean)")
    _draw_lengths(figure, words, columns["chosen_words"], columns["rejected_words"])
    bars = rows[1].subplots()
    _draw_funnel(bars, funnel)
    for axes in (rewards, words, bars):
        _tidy(axes)
    bars.spines[:].set_visible(False)
    return _png(figure, dpi=200)


def _draw_rewards(axes: Axes, chosen: np.ndarray, rejected: np.ndarray) -> None:
    chosen, rejected = (values[np.abs(values) < charts.LARGEST] for values in (chosen, rejected))
    both = np.concatenate([chosen, rejected])
    # The outermost half percent would squeeze everything else into a few bins; they are counted at the edge.
    bins = charts.bin_edges(both) if len(both) else np.array([0.0, 1.0])
    low, high = bins[0], bins[-1]
    for values, colour, label in ((rejected, REJECTED, "rejected"), (chosen, CHOSEN, "chosen")):
        if not len(values):
            continue
        # One shape, not one a bin: 40 take most of the time.
        axes.hist(np.clip(values, low, high), bins, color=colour, alpha=0.45, histtype="stepfilled")
        axes.hist(np.clip(values, low, high), bins, color=colour, histtype="step", linewidth=1.4, label=label)
        axes.axvline(values.mean(), color=colour, linestyle="--", linewidth=1)
    axes.set_ylabel("pairs")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    # Above the plot, where it hides nothing: the search for the best place within takes seconds on a busy machine.
    if len(both):
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))


def _draw_lengths(figure: Figure, axes: Axes, chosen: np.ndarray, rejected: np.ndarray) -> None:
    top = max(chosen.max(), rejected.max()) + 1
    bins = np.linspace(0, top, min(NUM_BINS, int(top)) + 1)
    *_, mesh = axes.hist2d(rejected, chosen, bins=[bins, bins], cmin=1, norm=PowerNorm(0.5, vmin=0), cmap="GnBu")
    axes.plot([0, top], [0, top], color=SOFT, linestyle="--", linewidth=1)
    axes.set_xlabel(f"words in rejected (mean {rejected.mean():.1f})")
    axes.set_ylabel(f"words in chosen (mean {chosen.mean():.1f})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(mesh, ax=axes, label="pairs", ticks=MaxNLocator(integer=True))


def _draw_funnel(axes: Axes, funnel: Sequence[tuple[str, int]]) -> None:
    """A bar a line, as long as its share of the last line before it that says how many came in."""
    whole, shares = 1, []
    for name, count in funnel:
        whole = max(count, 1) if name in ("questions", "answers", "candidate pairs") else whole
        shares.append(count / whole)
    names = [name for name, _ in funnel]
    bars = axes.barh(range(len(funnel)), shares, height=0.62, color="#3b7dbd")
    axes.bar_label(bars, [f"{count:,}" for _, count in funnel], padding=4, fontsize=9)
    axes.set_yticks(range(len(funnel)), names)
    axes.set_ylim(len(funnel) - 0.4, -0.6)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([])


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors="#475467", labelsize=9)


def _png(figure: Figure, dpi: int = 150) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()
