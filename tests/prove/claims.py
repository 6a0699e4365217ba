"""What the proof claims, each with the bound that was fixed before it was run, and what was measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from experiment import ENGINE
from figures import Interval

Table = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class Claim:
    """One sentence with its bound, and whether the figures bear it out."""

    text: str
    asked: str
    measured: str
    holds: bool


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """A change of a share, in percentage points."""
    return f"{100 * value:+.1f} points"


def told(figure: Interval, show=percent) -> str:
    return f"{show(figure.value)} ({show(figure.low)} to {show(figure.high)})"


def of_full(table: Table) -> list[Claim]:
    """Those of `make prove`."""
    engine, random = table[ENGINE], table["random"]
    return [
        Claim("The engine's pairs lower CHAIR_i at T = 0.7", "at least 60 %, lower end at least 50 %",
              told(engine["fall"]), engine["fall"].value >= 0.6 and engine["fall"].low >= 0.5),
        Claim("They reach the most of what is possible", "at least 80 % of the oracle's fall",
              told(engine["of_oracle"]), engine["of_oracle"].value >= 0.8),
        Claim("Answers do not leave out more", "coverage falls by at most 2 points",
              told(engine["coverage_change"], points), engine["coverage_change"].value >= -0.02),
        Claim("Random pairs do little", "a fall of at most 15 %", told(random["fall"]), random["fall"].value <= 0.15),
        *(_below(table, name) for name in ("random", "length", "sft")),
        Claim("Reversed pairs make it worse", "a fall below 0, its interval too",
              told(table["reversed"]["fall"]), table["reversed"]["fall"].high < 0),
    ]  # fmt: skip


def _below(table: Table, name: str) -> Claim:
    high, low = table[name]["fall"].high, table[ENGINE]["fall"].low
    return Claim(
        f"{name} falls less than the engine's", "intervals apart", f"{percent(high)} < {percent(low)}", high < low
    )


def of_quick(table: Table, arm: str = ENGINE) -> list[Claim]:
    """Those of `make prove QUICK=1`, of the engine's arm or of another one in its place.

    The bounds are far from what is measured, so that no draw of seeds crosses one, and pairs of shuffled rewards are
    further off still.
    """
    return [
        Claim(f"{arm}: CHAIR_i at T = 0.7 falls", "at least 35 %", told(table[arm]["fall"]),
              table[arm]["fall"].value >= 0.35),
        Claim(f"{arm}: more than by random pairs", "intervals apart",
              f"{percent(table['random']['fall'].high)} < {percent(table[arm]['fall'].low)}",
              table["random"]["fall"].high < table[arm]["fall"].low),
        Claim(f"{arm}: coverage", "falls by at most 3 points", told(table[arm]["coverage_change"]),
              table[arm]["coverage_change"].value >= -0.03),
    ]  # fmt: skip


def as_text(claims: list[Claim]) -> Iterator[str]:
    for one in claims:
        yield f"{'ok    ' if one.holds else 'FAILED'}  {one.text}: {one.measured}; asked: {one.asked}"
