"""The charts of the report: bins, means, and the numbers at their axes."""

import re

import numpy as np
import pytest

from data_engine.reporting import charts


def test_a_histogram_has_every_number_in_a_bin():
    values = np.array([0.0] * 50 + [1.0] * 49 + [1000.0])
    edges = charts.bin_edges(values)
    assert len(edges) == charts.NUM_BINS + 1
    assert charts.bin_edges(np.array([2, 2, 3])).tolist() == [1.5, 2.5, 3.5]
    drawn = charts.histogram([charts.Series("<b>", values, "kept")], "A & B")
    assert "<b>" not in drawn
    assert "A &amp; B" in drawn
    heights = [float(y) for y in re.findall(r",([\d.]+)", re.search(r'points="([^"]*)"', drawn)[1])]
    assert min(heights) == charts.TOP
    # The outermost ones are in the bins at the edges: 50 and 151 of 201, between the lines at 160 and at 8.
    values = np.array([-1000.0] + [0.0] * 49 + [1.0] * 150 + [1000.0])
    drawn = charts.histogram([charts.Series("kept", values, "kept")], "outliers")
    heights = [float(y) for y in re.findall(r",([\d.]+)", re.search(r'points="([^"]*)"', drawn)[1])]
    assert (heights[1], heights[-2]) == (pytest.approx(160 - 152 * 50 / 151, abs=0.05), 8.0)
    assert not charts.histogram([charts.Series("none", np.array([np.nan]), "kept")], "none")


@pytest.mark.parametrize(("count", "ticks"), [(21, [10, 21]), (8, [4, 8]), (3, [1, 3]), (1, [1]), (2001, [1000, 2001])])
def test_an_axis_of_counts_has_whole_numbers_where_they_stand(count, ticks):
    drawn = charts.histogram([charts.Series("kept", np.ones(count), "kept")], "Margins")
    heights = [float(y) for y in re.findall(r'class="grid"[^>]*y1="([^"]*)"', drawn)]
    told = [int(text.replace(",", "")) for text in re.findall(r'text-anchor="end">([^<]*)<', drawn)]
    assert told == ticks
    [base] = map(float, re.findall(r'class="axis"[^>]*y1="([^"]*)"', drawn))
    # To the tenth of a pixel that is written.
    assert [(base - y) / (base - heights[-1]) for y in heights] == pytest.approx(
        [one / count for one in ticks], abs=2e-3
    )


def test_fewer_than_two_hundred_numbers_are_all_in_their_places():
    """One of 77 is more than half a percent."""
    edges = charts.bin_edges(np.array([0.0] + [0.4 + 0.0079 * at for at in range(76)]))
    assert (edges[0], edges[-1]) == (0.0, pytest.approx(0.9925))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.00001, 0.00003], "+2e-05"),
        ([-0.0031, -0.0033], "-0.0032"),
        ([0.25, 1.0], "+0.625"),
        ([4e15, 6e15], "+5e+15"),
        ([0.0, 0.0], "+0.000"),
        # Added up one by one, they leave 6e-17.
        ([0.1, 0.2, -0.3], "+0.000"),
    ],
)
def test_a_mean_of_any_size_is_told_by_figures_that_count(values, told):
    drawn = charts.histogram([charts.Series("kept", np.array(values), "kept")], "Margins")
    assert f"<span>mean {told}</span>" in drawn
    assert f"mean {told} of {len(values)}" in drawn
