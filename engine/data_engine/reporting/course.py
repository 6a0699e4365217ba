"""A page about rounds of training: what each made, and the course of the rewards of its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from data_engine.preferences.funnel import Funnel
from data_engine.preferences.reward_totals import signed
from data_engine.reporting import charts
from data_engine.reporting.render import render

NAMES = {"best": "best of a question", "mean": "mean", "worst": "worst of a question"}
"""Lines of a chart: keys of reward_totals, and what they are called."""


@dataclass(frozen=True)
class RoundFacts:
    """What is told of a round."""

    number: int
    model: str
    """that answered"""
    funnel: Funnel
    rewards: Mapping[str, Mapping[str, float]]
    """reward_totals of its pairs: by the reward, answers, questions, equal, mean, best, worst, and whether it ranks"""
    words: Sequence[float] | None
    """of chosen and of rejected answers, the mean over kept pairs; None without any"""
    training_s: float | None
    """None where it is not trained yet"""
    report: str
    """where its report lies, from the page on"""


def text(title: str, rounds: Sequence[RoundFacts], changing: Sequence[str]) -> str:
    """The page; `changing` are sources of reward whose model is another one in each round."""
    names = list(dict.fromkeys(name for one in rounds for name in one.rewards))
    rewards = [(name, _ranks(name, rounds), _chart(name, rounds), _table(name, rounds)) for name in names]
    told = {"title": f"Rounds of {title}", "rounds": rounds, "table": _rounds(rounds), "rewards": rewards}
    return render("course.html.j2", None, **told, changing=changing)


def _ranks(name: str, rounds: Sequence[RoundFacts]) -> bool:
    """Whether pairs of a round are made by a reward."""
    return any(one.rewards[name].get("ranks", True) for one in rounds if name in one.rewards)


def _rounds(rounds: Sequence[RoundFacts]) -> list[tuple[str, ...]]:
    rows = [("round", "questions", "answers", "ranked", "pairs", "words of chosen", "words of rejected", "training")]
    for one in rounds:
        words = [f"{value:.1f}" for value in one.words] if one.words else ["", ""]
        time = "to come" if one.training_s is None else f"{one.training_s / 60:,.1f} min"
        counts = (one.funnel.questions, one.funnel.answers, one.funnel.ranked, one.funnel.found)
        rows.append((str(one.number), *(f"{count:,}" for count in counts), *words, time))
    return rows


def _table(name: str, rounds: Sequence[RoundFacts]) -> list[tuple[str, ...]]:
    rows = [("round", *NAMES.values(), "questions", "all equal")]
    for one in rounds:
        if found := one.rewards.get(name):
            numbers = signed(found)
            counts = (f"{found['questions']:,}", f"{found['equal']:,}")
            rows.append((str(one.number), *map(numbers.get, NAMES), *counts))
    return rows


def _chart(name: str, rounds: Sequence[RoundFacts]) -> Markup:
    found = [(one.number, one.rewards[name]) for one in rounds if one.rewards.get(name, {}).get("answers")]
    lines = {told: [(number, totals[which]) for number, totals in found] for which, told in NAMES.items()}
    return charts.course(lines, f"{name} by round")
