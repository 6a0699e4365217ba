"""The report: pairs.parquet and the questions in, one self-contained report/index.html out.

It shows where questions, answers and pairs were left out, how the rewards and lengths of chosen and rejected answers
differ, and the pairs with the largest and the smallest margins. Whatever comes from data is escaped.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine.preferences.counts import Funnel
from data_engine.questions import images
from data_engine.questions.dataset import Question, Questions
from data_engine.reporting.timings import Summary
from data_engine.store import units

NUM_SHOWN = 20
THUMBNAIL_PIXELS = 360
COLUMNS = ("chosen_sum", "rejected_sum", "chosen_avg", "rejected_avg", "chosen_words", "rejected_words")


@dataclass(frozen=True)
class Shown:
    """One pair of the report with the question that it answers."""

    pair: Mapping
    question: Question

    @property
    def margin(self) -> float:
        return self.pair["chosen_sum"] - self.pair["rejected_sum"]


def write_report(work_dir: Path, questions: Questions, funnel: Funnel, max_megapixels: float = 64) -> Path:
    """Write work_dir/report/index.html about the pairs in work_dir and return its path."""
    columns, rows = _kept_numbers(work_dir / "pairs/pairs.parquet")
    margins = columns["chosen_sum"] - columns["rejected_sum"]
    best, worst = _extremes(margins)
    pairs = _read_rows(work_dir / "pairs/pairs.parquet", rows[np.concatenate([best, worst])])
    shown = _with_questions(pairs, questions)
    parts = [_header(funnel), _funnel(funnel)]
    if len(margins):
        parts += [_plots(columns)]
        parts += [_pairs("Largest margins", shown[: len(best)], max_megapixels)]
    if len(worst):
        parts += [_pairs("Smallest margins", shown[len(best) :], max_megapixels)]
    parts += [_times(Summary.read(work_dir))]
    path = work_dir / "report/index.html"
    with units.replacing(path) as temporary:
        temporary.write_text(PAGE.format(style=STYLE, body="\n".join(parts)), encoding="utf-8")
    return path


def _kept_numbers(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The numbers of the kept pairs, and their row numbers in the file; no texts are read."""
    table = pq.read_table(path, columns=[*COLUMNS, "status"], partitioning=None)
    rows = np.flatnonzero(pc.equal(table["status"], "kept").combine_chunks().to_numpy(zero_copy_only=False))
    table = table.take(rows)
    return {name: table[name].to_numpy() for name in COLUMNS}, rows


def _extremes(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the largest margins, largest first, and of the smallest, smallest first; none is in both."""
    order = np.argsort(-margins, kind="stable")
    if len(order) <= NUM_SHOWN:
        return order, order[:0]
    return order[: NUM_SHOWN // 2], order[::-1][: NUM_SHOWN - NUM_SHOWN // 2]


def _read_rows(path: Path, rows: np.ndarray) -> list[dict]:
    """Some rows of a parquet file, in the order asked for, with one row group in memory at a time."""
    found, first = {}, 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            own = [int(row) for row in rows if first <= row < first + num_rows]
            if own:
                table = file.read_row_group(group).take(pa.array([row - first for row in own]))
                found.update(zip(own, table.to_pylist(), strict=True))
            first += num_rows
    return [found[int(row)] for row in rows]


def _with_questions(pairs: list[dict], questions: Questions) -> list[Shown]:
    wanted = {pair["idx"] for pair in pairs}
    rows = {idx: row for row, idx in enumerate(questions.idx) if idx in wanted}
    read = {idx: next(iter(questions.rows(range(row, row + 1)))) for idx, row in rows.items()}
    return [Shown(pair, read[pair["idx"]]) for pair in pairs]


def _header(funnel: Funnel) -> str:
    return (
        "<header><h1>Preference pairs</h1>"
        f"<p>{funnel.written:,} pairs from {funnel.answers:,} answers to {funnel.questions:,} questions</p></header>"
    )


def _funnel(funnel: Funnel) -> str:
    """A table with bars; each bar is relative to the last line that says how many came in."""
    whole, rows = 1, []
    for name, count in funnel.lines():
        kind = "out" if name.startswith(" ") else "in"
        if name in ("questions", "answers", "candidate pairs"):
            whole = max(count, 1)
        rows.append(
            f'<tr class="{kind}"><th>{html.escape(name.strip())}</th><td class="n">{count:,}</td>'
            f'<td class="bar"><i style="width:{100 * count / whole:.2f}%"></i></td>'
            f'<td class="n">{100 * count / whole:.1f}&thinsp;%</td></tr>'
        )
    return f"<section><h2>Funnel</h2><table>{''.join(rows)}</table></section>"


def _plots(columns: dict[str, np.ndarray]) -> str:
    # matplotlib takes seconds to import, which every rank would spend and one needs.
    from data_engine.reporting import plots

    figures = [
        ("Reward of the answer (sum)", plots.reward_histogram(columns["chosen_sum"], columns["rejected_sum"])),
        ("Reward a token (avg)", plots.reward_histogram(columns["chosen_avg"], columns["rejected_avg"])),
        ("Words, chosen against rejected", plots.lengths(columns["chosen_words"], columns["rejected_words"])),
    ]
    cards = "".join(
        f'<figure><figcaption>{title}</figcaption><img alt="{title}" src="{_data_uri(png, "png")}"></figure>'
        for title, png in figures
    )
    return f'<section><h2>Rewards and lengths</h2><div class="plots">{cards}</div></section>'


def _pairs(title: str, shown: Iterable[Shown], max_megapixels: float) -> str:
    cards = "".join(_pair(one, max_megapixels) for one in shown)
    return f"<section><h2>{title}</h2>{cards}</section>"


def _pair(shown: Shown, max_megapixels: float) -> str:
    pair = shown.pair
    sides = "".join(
        f'<div class="{side}"><h4>{side} <span>{pair[side + "_sum"]:+.3f} sum &middot; {pair[side + "_avg"]:+.4f} avg '
        f"&middot; {pair[side + '_words']} words</span></h4><p>{html.escape(pair[side])}</p></div>"
        for side in ("chosen", "rejected")
    )
    return (
        f'<article><div class="picture">{_thumbnail(shown.question.image, max_megapixels)}</div><div>'
        f'<h3>{html.escape(shown.question.question or "")}<span class="margin">margin {shown.margin:+.3f}</span></h3>'
        f'<div class="sides">{sides}</div><p class="idx">idx {html.escape(str(pair["idx"]))} &middot; answers '
        f"{pair['chosen_index']} and {pair['rejected_index']}</p></div></article>"
    )


def _thumbnail(data: bytes | None, max_megapixels: float) -> str:
    try:
        image = images.decode(data, max_megapixels)
    except images.BadImage as error:
        return f"<p>{html.escape(str(error))}</p>"
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return f'<img alt="" loading="lazy" src="{_data_uri(file.getvalue(), "jpeg")}">'


def _times(summary: Summary) -> str:
    """Where the time went, and what was quarantined for which reason."""
    tables = "".join(_table(rows) for rows in (summary.times(), summary.left_out()) if rows)
    return f"<section><h2>Time and quarantine</h2>{tables}</section>"


def _table(rows: list[tuple[str, ...]]) -> str:
    """The first row is the heading, the first column names the others."""
    heading = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr><th>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows[1:]
    )
    return f'<table class="plain"><tr>{heading}</tr>{body}</table>'


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Preference pairs</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

STYLE = """
:root { --ink: #1d2433; --soft: #667085; --line: #e4e7ec; --good: #12805c; --bad: #b54708; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: #f6f7f9; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header p { color: var(--soft); margin-top: 0; }
h1 { margin: 0; font-size: 30px; letter-spacing: -.02em; }
h2 { margin: 0 0 16px; font-size: 19px; }
section { margin: 32px 0; }
table, figure, article { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; }
table { width: 100%; border-collapse: separate; border-spacing: 0; padding: 12px 20px; }
th { text-align: left; font-weight: 600; white-space: nowrap; padding: 5px 24px 5px 0; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-left: 16px; }
td.bar { width: 55%; padding-left: 24px; }
td.bar i { display: block; height: 12px; min-width: 1px; border-radius: 3px; background: #3c6df0; }
tr.out th { font-weight: 400; color: var(--soft); padding-left: 20px; }
tr.out td { color: var(--soft); }
tr.out td.bar i { background: #f0b58a; }
table.plain { margin-bottom: 16px; font-variant-numeric: tabular-nums; }
table.plain td { padding: 5px 24px 5px 0; }
.plots { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); }
figure { margin: 0; padding: 14px 16px 8px; }
figcaption { font-weight: 600; margin-bottom: 6px; }
figure img { width: 100%; }
article { display: grid; grid-template-columns: 240px 1fr; gap: 20px; padding: 18px; margin-bottom: 14px; }
.picture img { width: 100%; border-radius: 8px; display: block; }
.picture p { color: var(--soft); font-size: 13px; }
h3 { margin: 0 0 12px; font-size: 16px; white-space: pre-wrap; overflow-wrap: anywhere; }
.margin { float: right; margin-left: 12px; padding: 1px 10px; border-radius: 99px; background: #eef2ff; color: #2f54c9;
  font-size: 13px; font-variant-numeric: tabular-nums; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; }
.sides > div { border-left: 3px solid; padding-left: 12px; }
.chosen { border-color: var(--good); } .chosen h4 { color: var(--good); }
.rejected { border-color: var(--bad); } .rejected h4 { color: var(--bad); }
h4 { margin: 0; font-size: 13px; }
h4 span { color: var(--soft); font-weight: 400; margin-left: 6px; font-variant-numeric: tabular-nums; }
.sides p { margin: 4px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 20em; overflow-y: auto; }
.idx { color: var(--soft); font-size: 12.5px; margin: 12px 0 0; }
@media (max-width: 760px) { article, .sides { grid-template-columns: 1fr; } td.bar { display: none; } }
"""
