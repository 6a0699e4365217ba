"""The page's charts as SVG, numbers in, markup out: text in the page's own colours, so that they fit both themes."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

NUM_BINS = 40
# Numbers beyond are not drawn, nor are those that are not finite: their sums would overflow.
LARGEST = 1e100
# Numbers from here on are told by four digits and a power of ten.
HUGE = 1e9
WIDTH, HEIGHT = 520, 190
# On the left there is room for "123,456" in the letters of a phone, which are the largest.
LEFT, RIGHT, TOP, BOTTOM = 72, 10, 8, 30
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """One histogram of a chart."""

    name: str
    values: np.ndarray
    kind: str
    """a class of the style sheet: chosen, rejected, kept, dropped, before, after"""


def histogram(series: Sequence[Series], label: str, share: bool = False) -> Markup:
    """Histograms over the same bins, drawn as steps, each with its mean as a dashed line.

    The outermost half percent is counted in the bins at the edges. `share`: of each series' own sum, since one may
    hold many more numbers than the other.
    """
    series = [Series(one.name, drawn_of(one.values), one.kind) for one in series]
    series = [one for one in series if len(one.values)]
    if not series:
        return Markup("")
    edges = bin_edges(np.concatenate([one.values for one in series]))
    counts = [np.histogram(np.clip(one.values, edges[0], edges[-1]), edges)[0].astype(float) for one in series]
    if share:
        counts = [100 * count / max(1.0, count.sum()) for count in counts]
    top = max(float(count.max()) for count in counts) or 1.0
    x, y = _scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT), _scale(0, top, HEIGHT - BOTTOM, TOP)
    parts = [_axes(edges, top, x, y, "%" if share else "")]
    for one, count in zip(series, counts, strict=True):
        points = [(x(edges[0]), y(0))]
        for at, value in enumerate(count.tolist()):
            points += [(x(edges[at]), y(value)), (x(edges[at + 1]), y(value))]
        points.append((x(edges[-1]), y(0)))
        drawn = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        mean = x(min(max(float(one.values.mean()), edges[0]), edges[-1]))
        parts.append(f'<polygon class="shape {one.kind}" points="{drawn}"/>')
        parts.append(f'<line class="mean {one.kind}" x1="{mean:.1f}" x2="{mean:.1f}" y1="{TOP}" y2="{y(0):.1f}"/>')
    told = ", ".join(f"{one.name}: mean {signed(mean_of(one.values))} of {len(one.values):,}" for one in series)
    legend = "".join(
        f'<li class="{one.kind}"><i></i>{html.escape(one.name)} <span>mean {signed(mean_of(one.values))}</span></li>'
        for one in series
    )
    return Markup(_svg(parts, f"{label}. {told}") + f'<ul class="legend">{legend}</ul>')


def drawn_of(values: np.ndarray) -> np.ndarray:
    """The numbers that can be drawn."""
    return values[np.abs(values) < LARGEST]


def signed(value: float) -> str:
    """A reward with its sign, as page.js writes one: three digits behind the point, or two that count of a smaller
    number, which would read as 0."""
    if value and abs(value) < 0.01:
        return f"{value:+.2g}"
    return f"{value:+.4g}" if abs(value) >= HUGE else f"{value:+.3f}"


def mean_of(values: np.ndarray) -> float:
    """Their mean; 0 where it is what rounding leaves of numbers that cancel out."""
    mean = float(values.mean())
    return mean if abs(mean) > 1e-12 * float(np.abs(values).max()) else 0.0


def bin_edges(values: np.ndarray) -> np.ndarray:
    """The edges of NUM_BINS equal bins, without the outermost half percent on each side; integers have whole bins."""
    # Each of them is one of the numbers, so that fewer than 200 are all in their places.
    low, high = (np.quantile(values, at, method=side) for at, side in ((0.005, "lower"), (0.995, "higher")))
    # Of huge numbers, half of one is less than their rounding.
    least = max(0.5, 1e-3 * abs(low))
    if high - low <= 1e-9 * least:
        low, high = low - least, high + least
    if np.issubdtype(values.dtype, np.integer):
        width = max(1, int(np.ceil((high - low + 1) / NUM_BINS)))
        first = int(np.floor(low))
        number = int(np.ceil((high - first + 1) / width))
        return first - 0.5 + width * np.arange(number + 1)
    return np.linspace(low, high, NUM_BINS + 1)


def timeline(lanes: Sequence[tuple[str, Sequence[tuple[float, float, str]]]], kinds: Mapping[str, int]) -> Markup:
    """A lane a rank: (name, [(start, end, stage)] in seconds since the first start); `kinds` numbers the stages."""
    longest = max((end for _, parts in lanes for _, end, _ in parts), default=0.0)
    if not longest:
        return Markup("")
    row, left = 18, 90
    x = _scale(0, longest, left, WIDTH - RIGHT)
    drawn = []
    for at, (name, parts) in enumerate(lanes):
        top = TOP + row * at
        drawn.append(f'<text class="lane" x="{left - 6}" y="{top + 11}" text-anchor="end">{html.escape(name)}</text>')
        for start, end, stage in parts:
            width = max(0.6, x(end) - x(start))
            drawn.append(
                f'<rect class="stage s{kinds[stage]}" x="{x(start):.1f}" y="{top}" width="{width:.1f}" height="13"/>'
            )
    bottom = TOP + row * len(lanes)
    for value, anchor in ((0.0, "start"), (longest, "end")):
        drawn.append(f'<text x="{x(value):.1f}" y="{bottom + 12}" text-anchor="{anchor}">{value:,.0f} s</text>')
    told = "Which stage each rank computed when, in seconds since the first start"
    return Markup(_svg(drawn, told, bottom + 18))


def course(lines: Mapping[str, Sequence[tuple[int, float]]], label: str) -> Markup:
    """Lines over whole numbers, such as rounds, by their names: (number, value) in order."""
    points = [point for line in lines.values() for point in line if abs(point[1]) < LARGEST]
    if not points:
        return Markup("")
    first, last = min(at for at, _ in points), max(at for at, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    if low == high:
        low, high = low - 1, high + 1
    # Half a step of room at either end, so that one round has its place in the middle.
    x, y = _scale(first - 0.5, last + 0.5, LEFT, WIDTH - RIGHT), _scale(low, high, HEIGHT - BOTTOM - 8, TOP + 6)
    drawn = []
    for value in _ticks(low, high):
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        drawn.append(f'<text x="{LEFT - 5}" y="{y(value) + 5:.1f}" text-anchor="end">{value:.10g}</text>')
    step = -(-(last - first + 1) // 10)
    for number in range(first, last + 1, step):
        drawn.append(f'<text x="{x(number):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{number}</text>')
    legend = []
    for kind, (name, line) in enumerate(lines.items()):
        shown = [(x(at), y(value)) for at, value in line if abs(value) < LARGEST]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in shown)
        drawn.append(f'<polyline class="course s{kind}" points="{path}"/>')
        drawn += [f'<circle class="s{kind}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"/>' for px, py in shown]
        legend.append(f'<li class="s{kind}"><i></i>{html.escape(name)}</li>')
    told = "; ".join(f"{name}: " + ", ".join(f"{at}: {signed(value)}" for at, value in line)
                     for name, line in lines.items())  # fmt: skip
    return Markup(_svg(drawn, f"{label}. {told}") + f'<ul class="legend">{"".join(legend)}</ul>')


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    factor = (end - start) / (high - low)
    return lambda value: start + (value - low) * factor


def _axes(edges: np.ndarray, top: float, x: Scale, y: Scale, unit: str) -> str:
    base = y(0)
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base:.1f}" y2="{base:.1f}"/>']
    for value in _ticks(float(edges[0]), float(edges[-1])):
        parts.append(f'<text x="{x(value):.1f}" y="{base + 15:.1f}" text-anchor="middle">{value:.10g}</text>')
    # Half a pair is none.
    for value in (top / 2, top) if unit else dict.fromkeys((max(1.0, top // 2), top)):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        told = f"{value:,.1f}" if unit else f"{value:,.0f}"
        parts.append(f'<text x="{LEFT - 5}" y="{y(value) + 8:.1f}" text-anchor="end">{told}{unit}</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers within."""
    step = 10.0 ** np.floor(np.log10((high - low) / 5))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= 6)
    first = np.ceil(low / step)
    ticks = [float(f"{(first + at) * step:.10g}") for at in range(8)]
    return [tick + 0.0 for tick in ticks if tick <= high]


def _svg(parts: Sequence[str], label: str, height: float = HEIGHT) -> str:
    told = html.escape(label)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{told}">{"".join(parts)}</svg>'
