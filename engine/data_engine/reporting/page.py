"""The report: pairs, questions and logs in, one self-contained report/index.html out.

It shows where questions, answers and pairs were left out, how rewards and lengths of chosen and rejected answers
differ, where the time went, and a gallery of pairs with the log-prob difference of each token. See docs/report.md.
"""

from pathlib import Path

import numpy as np
from markupsafe import Markup

from data_engine.models.checkpoints.adapter_folder import adapters_told
from data_engine.of_pairing import OWN, pairs_file
from data_engine.preferences.funnel import Funnel
from data_engine.questions.dataset import Questions
from data_engine.questions.images import Exif
from data_engine.reporting import about, charts, choice, facts
from data_engine.reporting.agreement import Agreement, agreements, disagreement
from data_engine.reporting.answers import read_run_file
from data_engine.reporting.charts import Series
from data_engine.reporting.gallery import PageData, Run, gallery_data, rendered
from data_engine.reporting.pair_numbers import SIDES, PairNumbers
from data_engine.reporting.render import called
from data_engine.reporting.timings import Summary

# What rewards of these columns are counted by.
PER = {"sum": " of the answer", "avg": " a token"}


def report_path(work_dir: Path, name: str = OWN) -> Path:
    """Where the page about a pairing is: report/index.html for the run's own, report/NAME/index.html for another."""
    return work_dir / "report" / ("" if name == OWN else name) / "index.html"


def report_text(
    work_dir: Path,
    questions: Questions,
    funnel: Funnel,
    max_megapixels: float = 64,
    exif: Exif = "apply",
    name: str = OWN,
) -> str:
    """The page about a pairing."""
    run = Run(work_dir, read_run_file(work_dir, name), questions, max_megapixels, exif)
    numbers = PairNumbers.read(pairs_file(work_dir, name))
    data = _gallery(run, numbers)
    summary = Summary.read(work_dir)
    sources_by, sources = facts.source_table(questions, numbers)
    return rendered(
        "page.html.j2",
        run,
        data,
        title=f"{called(work_dir)}: preference pairs" + ("" if name == OWN else f" {name}"),
        funnel=funnel,
        about=[
            *about.result_rows(numbers, funnel, data.answers.finish_reasons),
            *about.run_rows(numbers.path, run.run_file, funnel.questions),
            *about.pairing_rows(numbers.path, run.run_file, funnel),
        ],
        bars=facts.funnel_bars(funnel),
        reward_table=facts.reward_table(numbers.path),
        charts=[*reward_charts(numbers), *margin_charts(numbers)],
        lengths=length_chart(numbers),
        length_table=facts.length_table(numbers),
        agreements=[_agreement_row(one) for one in _agreements(numbers)],
        ranking=numbers.ranking,
        finish=facts.finish_table(data.answers.finish_reasons),
        sources_by=sources_by,
        sources=sources,
        left_out=facts.left_out_table(summary.reasons),
        times=summary.times(),
        ranks=facts.rank_table(work_dir),
        **_timeline(work_dir),
        settings=facts.settings_tables(numbers.path, run.run_file),
        adapters=adapters_told(run.run_file),
        statuses=facts.dropped_statuses(numbers),
    )


def _gallery(run: Run, numbers: PairNumbers) -> PageData:
    chosen = choice.choose(numbers)
    differences = list(numbers.ranking_differences().values())
    extra = {"disagreement": disagreement(differences) if len(differences) > 1 else np.full(len(numbers), np.nan)}
    return gallery_data(run, numbers, chosen, extra)


def reward_charts(numbers: PairNumbers) -> list[tuple[str, Markup]]:
    """(title, chart) of each reward of the kept pairs; none without pairs."""
    rows = numbers.kept
    if not len(rows):
        return []
    found = []
    for name in numbers.rewards():
        title = f"{numbers.called(name)}{PER.get(name, '')}, number of pairs"
        series = [Series(side, numbers.columns[f"{side}_{name}"][rows], side) for side in reversed(SIDES)]
        # None where no number can be drawn.
        if drawn := charts.histogram(series, title):
            found.append((title, drawn))
    return found


def margin_charts(numbers: PairNumbers) -> list[tuple[str, Markup]]:
    """(title, chart) of the margins of kept and of dropped pairs, as shares of each; none without pairs."""
    margins, kept = numbers.columns["margin"], np.zeros(len(numbers), bool)
    kept[numbers.kept] = True
    series = [Series("dropped", margins[~kept], "dropped"), Series("kept", margins[kept], "kept")]
    title = f"Margin of {numbers.called(numbers.ranking[0])}, % of kept and of dropped pairs"
    drawn = charts.histogram(series, title, share=True)
    return [(title, drawn)] if drawn else []


def length_chart(numbers: PairNumbers) -> Markup:
    """Words of chosen less words of rejected, over all candidate pairs and over the kept ones."""
    words = numbers.word_difference
    series = [Series("before: all candidates", words, "before"), Series("after: kept", words[numbers.kept], "after")]
    return charts.histogram(series, "Difference in words", share=True)


def _agreements(numbers: PairNumbers) -> list[Agreement]:
    differences = numbers.ranking_differences() if len(numbers) else {}
    return agreements({numbers.called(name): values for name, values in differences.items()})


def _agreement_row(one: Agreement) -> tuple[str, ...]:
    correlation = "" if one.correlation is None else f"{one.correlation:+.3f}"
    same = "" if one.same_order is None else f"{100 * one.same_order:.1f} %"
    return (f"{one.first} and {one.second}", f"{one.num_pairs:,}", correlation, same)


def _timeline(work_dir: Path) -> dict:
    found, num_ranks = facts.lanes(work_dir)
    stages = list(dict.fromkeys(stage for _, parts in found for _, _, stage in parts))
    drawn = charts.timeline(found, {name: at for at, name in enumerate(stages)})
    of = f", the first {len(found)} of {num_ranks}" if num_ranks > len(found) else ""
    return {"timeline": drawn, "stages": stages, "timeline_of": of}
