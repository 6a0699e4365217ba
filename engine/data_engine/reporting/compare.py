"""Two pairings of one run on one page: funnels and margins side by side, and the pairs that only one of them keeps."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from markupsafe import Markup

from data_engine.of_pairing import pairs_file
from data_engine.preferences.funnel import Funnel
from data_engine.questions.dataset import Questions
from data_engine.questions.images import Exif
from data_engine.reporting import about, charts, choice, facts
from data_engine.reporting.agreement import disagreement
from data_engine.reporting.answers import read_run_file
from data_engine.reporting.charts import Series
from data_engine.reporting.choice import Choice
from data_engine.reporting.gallery import MOST_BYTES, PageData, Run, gallery_data, rendered
from data_engine.reporting.pair_numbers import PairNumbers
from data_engine.reporting.render import called

Pairing = tuple[str, Funnel]
"""its name and its funnel"""


@dataclass(frozen=True)
class Overlap:
    """Which kept pairs two pairings share."""

    both: int
    """pairs of the same two answers, in the same order"""
    turned: int
    """pairs of the same two answers of which one pairing chose the other"""
    only: tuple[np.ndarray, np.ndarray]
    """rows, in each file of pairs, of the kept pairs that the other has not"""


def comparison_path(work_dir: Path, one: str, other: str) -> Path:
    """Where the page that compares two pairings is."""
    return work_dir / "report/compare" / one / other / "index.html"


def comparison_text(
    work_dir: Path,
    questions: Questions,
    pairings: tuple[Pairing, Pairing],
    max_megapixels: float = 64,
    exif: Exif = "apply",
) -> str:
    """The page that compares two pairings."""
    run = Run(work_dir, read_run_file(work_dir, pairings[0][0]), questions, max_megapixels, exif)
    names = [name for name, _ in pairings]
    numbers = [PairNumbers.read(pairs_file(work_dir, name)) for name in names]
    shared = overlap(*numbers)
    data = _gallery(run, names, numbers, shared)
    return rendered(
        "compare.html.j2",
        run,
        data,
        title=f"{called(work_dir)}: pairings {names[0]} and {names[1]}",
        names=names,
        about=_about(run, pairings, numbers),
        funnel=funnel_table(pairings),
        margins=[margin_chart(name, one) for name, one in zip(names, numbers, strict=True)],
        lengths=[(name, facts.length_table(one)) for name, one in zip(names, numbers, strict=True)],
        overlap=[("kept pairs", ""), *_overlap_rows(names, numbers, shared)],
        statuses=[f"only {name}" for name, rows in zip(names, shared.only, strict=True) if len(rows)],
    )


def _about(run: Run, pairings: Sequence[Pairing], numbers: Sequence[PairNumbers]) -> about.Rows:
    """Rows about the run, and one about each of its pairings."""
    rows = about.run_rows(numbers[0].path, run.run_file, pairings[0][1].questions)
    for (name, funnel), own in zip(pairings, numbers, strict=True):
        (_, lines), *others = about.pairing_rows(own.path, run.run_file, funnel)
        lines = [*lines, *(f"{title.lower()}: {line}" for title, told in others for line in told)]
        rows.append((f"Pairing {name}", lines))
    return rows


def overlap(one: PairNumbers, other: PairNumbers) -> Overlap:
    """What two pairings of the same answers share of their kept pairs."""
    keys, turned = _keys(one, other)
    only = tuple(own.kept[~np.isin(keys[at], keys[1 - at])] for at, own in enumerate((one, other)))
    return Overlap(int(np.isin(keys[0], keys[1]).sum()), int(np.isin(keys[0], turned).sum()), only)


def _keys(one: PairNumbers, other: PairNumbers) -> tuple[list[np.ndarray], np.ndarray]:
    """A number for each kept pair of both, equal where question and answers are; and those of `other` turned round."""
    names = ["idx", "chosen_index", "rejected_index"]
    tables = [
        pq.read_table(own.path, columns=names, partitioning=None).take(pa.array(own.kept)) for own in (one, other)
    ]
    known = pc.unique(
        pa.chunked_array([chunk for table in tables for chunk in table["idx"].chunks], tables[0]["idx"].type)
    )
    columns = [
        [pc.index_in(table["idx"], known).to_numpy(zero_copy_only=False).astype(np.int64)]
        + [table[name].to_numpy().astype(np.int64) for name in names[1:]]
        for table in tables
    ]
    # sample_index may be any int32 of a file of answers: they are numbered anew.
    indexes = np.unique(np.concatenate([column for own in columns for column in own[1:]]))
    size = max(1, len(indexes))
    numbered = [(own[0], *(np.searchsorted(indexes, column) for column in own[1:])) for own in columns]
    keys = [(idx * size + chosen) * size + rejected for idx, chosen, rejected in numbered]
    idx, chosen, rejected = numbered[1]
    return keys, (idx * size + rejected) * size + chosen


def funnel_table(pairings: Sequence[Pairing]) -> list[tuple[str, ...]]:
    """The lines of both funnels side by side, in the order in which things are left out; "" where one has no line."""
    lines = [_with_kept(funnel) for _, funnel in pairings]
    order: list[str] = []
    for own in lines:
        at = 0
        for name in own:
            if name in order:
                at = order.index(name) + 1
            else:
                order.insert(at, name)
                at += 1
    rows = [(name, *(f"{own[name]:,}" if name in own else "" for own in lines)) for name in order]
    return [("", *(name for name, _ in pairings)), *rows]


def _with_kept(funnel: Funnel) -> dict[str, int]:
    """The lines of a funnel; that of the run's own pairing, which ends with what is written, says "kept" as well."""
    found: dict[str, int] = {}
    for name, count in funnel.lines():
        if name == "written" or name.startswith("  kept, but"):
            found.setdefault("kept", funnel.found)
        found[name] = count
    return found


def margin_chart(name: str, numbers: PairNumbers) -> tuple[str, Markup]:
    """(title, chart) of the margins of the kept pairs."""
    title = f"{name}: margin of {numbers.called(numbers.ranking[0])}, number of kept pairs"
    return title, charts.histogram([Series("kept", numbers.columns["margin"][numbers.kept], "kept")], title)


def _overlap_rows(names: Sequence[str], numbers: Sequence[PairNumbers], shared: Overlap) -> list[tuple[str, str]]:
    told = [(f"in {name}", f"{len(own.kept):,}") for name, own in zip(names, numbers, strict=True)]
    told += [("in both, the same answer chosen", f"{shared.both:,}")]
    told += [("in both, the other answer chosen", f"{shared.turned:,}")]
    return told + [(f"only in {name}", f"{len(rows):,}") for name, rows in zip(names, shared.only, strict=True)]


def _gallery(run: Run, names: Sequence[str], numbers: Sequence[PairNumbers], shared: Overlap) -> PageData:
    parts = []
    for name, own, rows in zip(names, numbers, shared.only, strict=True):
        ends, between = choice.spread(rows, own.columns["margin"], choice.NUM_PAIRS // 2, name)
        told = [choice.told_of(f"only in {name}", len(rows), ends, between)] if len(rows) else []
        differences = list(own.ranking_differences().values())
        extra = {"disagreement": disagreement(differences)} if len(differences) > 1 else {}
        chosen = Choice(np.concatenate([ends, between]).astype(np.int64), told)
        data = gallery_data(run, own, chosen, extra, MOST_BYTES / 2)
        for pair in data.pairs:
            pair["status"] = f"only {name}"
        parts.append(data)
    return joined(*parts)


def joined(one: PageData, other: PageData) -> PageData:
    """The data of two galleries as that of one."""
    images = list(dict.fromkeys([*one.images, *other.images]))
    places = {image: at for at, image in enumerate(images)}
    for data in (one, other):
        for pair in data.pairs:
            pair["pictures"] = [places[data.images[number]] for number in pair["pictures"]]
    pairs = [*one.pairs, *other.pairs]
    for number, pair in zip(itertools.count(), pairs, strict=False):
        pair["number"] = number
    # What is said of both, such as the quality of thumbnails, is said once.
    return PageData(
        pairs, images, one.answers, list(dict.fromkeys([*one.told, *other.told])), one.questions | other.questions
    )
