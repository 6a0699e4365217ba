"""The report's plots: numbers in, PNG bytes out; the same numbers give the same bytes."""

import io

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

CHOSEN, REJECTED, SOFT = "#12805c", "#b54708", "#98a2b3"
NUM_BINS = 40


def reward_histogram(chosen: np.ndarray, rejected: np.ndarray) -> bytes:
    """Rewards of chosen and of rejected answers over the same bins, with their means."""
    figure, axes = _axes()
    both = np.concatenate([chosen, rejected])
    # The outermost half percent would squeeze everything else into a few bins; they are counted at the edge.
    low, high = np.quantile(both, [0.005, 0.995])
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = np.linspace(low, high, NUM_BINS + 1)
    for values, colour, label in ((rejected, REJECTED, "rejected"), (chosen, CHOSEN, "chosen")):
        axes.hist(np.clip(values, low, high), bins, color=colour, alpha=0.45)
        axes.hist(np.clip(values, low, high), bins, color=colour, histtype="step", linewidth=1.4, label=label)
        axes.axvline(values.mean(), color=colour, linestyle="--", linewidth=1)
    axes.set_xlabel("reward (dashed: mean)")
    axes.set_ylabel("pairs")
    # Above the plot, where it hides nothing: the search for the best place within takes seconds on a busy machine.
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def lengths(chosen: np.ndarray, rejected: np.ndarray) -> bytes:
    """How many pairs have which two lengths, in words; on the dashed line both sides are equally long."""
    figure, axes = _axes()
    top = max(chosen.max(), rejected.max()) + 1
    bins = np.linspace(0, top, min(NUM_BINS, int(top)) + 1)
    *_, mesh = axes.hist2d(rejected, chosen, bins=[bins, bins], cmin=1, norm=PowerNorm(0.5, vmin=0), cmap="GnBu")
    axes.plot([0, top], [0, top], color=SOFT, linestyle="--", linewidth=1)
    axes.set_xlabel(f"words in rejected (mean {rejected.mean():.1f})")
    axes.set_ylabel(f"words in chosen (mean {chosen.mean():.1f})")
    figure.colorbar(mesh, ax=axes, label="pairs", ticks=MaxNLocator(integer=True))
    return _png(figure)


def _axes():
    # A Figure of its own, not pyplot's: no window system, no global state.
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors="#475467", labelsize=9)
    return figure, axes


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return file.getvalue()
