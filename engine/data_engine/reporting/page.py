"""The report: pairs.parquet and the questions in, one self-contained report/index.html out.

It shows where questions, answers and pairs were left out, how the rewards and lengths of chosen and rejected answers
differ, and the pairs with the largest and the smallest margins. page.html.j2 is the page; all values in it are escaped.
"""

import base64
import contextlib
import functools
import html
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from markupsafe import Markup
from PIL import Image

from data_engine.models.adapter_folder import adapters_told
from data_engine.preferences.counts import Funnel
from data_engine.questions import images
from data_engine.questions.dataset import Question, Questions
from data_engine.questions.images import Exif
from data_engine.reporting.timings import Summary
from data_engine.store import units

NUM_SHOWN = 20
THUMBNAIL_PIXELS = 360
# Of a question with several pictures.
MAX_THUMBNAILS = 4
WORDS = ("chosen_words", "rejected_words")
SIDES = ("chosen", "rejected")
# Rewards that have words of their own, and those that are not shown.
TITLES = {"sum": "Reward of the answer (sum)", "avg": "Reward a token (avg)"}
NOT_SHOWN = ("implicit_min", "implicit_last")
# The name of the pairing that a run makes.
OWN = "pairs"


@dataclass(frozen=True)
class ShownPair:
    """One pair of the report, with its question and pictures."""

    pair: Mapping
    question: str
    thumbnails: list[str]
    """data URIs of the first few pictures"""
    problem: str
    """why there is no thumbnail"""

    rewards: list[str]
    """the rewards that are shown, by the names that tables have for them"""

    def shown(self, side: str) -> list[str]:
        """The rewards of an answer, in words."""
        numbers = [(name, self.pair[f"{side}_{name}"]) for name in self.rewards]
        return [f"{value:+.{4 if name == 'avg' else 3}f} {name}" for name, value in numbers if value is not None]


def write_report(
    work_dir: Path,
    questions: Questions,
    funnel: Funnel,
    max_megapixels: float = 64,
    exif: Exif = "apply",
    name: str = OWN,
) -> Path:
    """Write the page about a pairing and return its path: report/index.html, of another one report/NAME/index.html."""
    file = work_dir / f"pairs/{name}.parquet"
    columns, rows = kept_numbers(file)
    best, worst = _extremes(columns["margin"])
    pairs = _read_rows(file, rows[np.concatenate([best, worst])])
    decode = functools.partial(images.decode, max_megapixels=max_megapixels, exif=exif)
    shown = _with_questions(pairs, questions, decode, shown_rewards(columns))
    sections = [("Largest margins", shown[: len(best)]), ("Smallest margins", shown[len(best) :])]
    summary = Summary.read(work_dir)
    text = _render(
        funnel=funnel,
        bars=_bars(funnel),
        plots=_plots(columns),
        pairs=[(title, shown) for title, shown in sections if shown],
        adapters=_adapters(work_dir),
        tables=[rows for rows in (summary.times(), summary.left_out()) if rows],
    )
    path = work_dir / "report" / ("" if name == OWN else name) / "index.html"
    with units.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _adapters(work_dir: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return adapters_told(json.loads((work_dir / "run.json").read_text()))
    return []


def kept_numbers(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The numbers of the kept pairs, and their row numbers in the file; no texts are read. Null rewards are NaN."""
    schema = pq.read_schema(path)
    numbers = [field.name for field in schema if pa.types.is_floating(field.type)]
    table = pq.read_table(path, columns=[*numbers, *WORDS, "status"], partitioning=None)
    rows = np.flatnonzero(pc.equal(table["status"], "kept").combine_chunks().to_numpy(zero_copy_only=False))
    table = table.take(rows)
    return {name: table[name].to_numpy() for name in (*numbers, *WORDS)}, rows


def shown_rewards(columns: Mapping[str, np.ndarray]) -> list[str]:
    """The rewards of the pairs that are shown: those that all pairs have, but for NOT_SHOWN."""
    names = [name.removeprefix("chosen_") for name in columns if name.startswith("chosen_") and name not in WORDS]
    return [
        name
        for name in names
        if name not in NOT_SHOWN and all(np.isfinite(columns[f"{side}_{name}"]).all() for side in SIDES)
    ]


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


def _with_questions(
    pairs: list[dict], questions: Questions, decode: Callable[[bytes | None], Image.Image], rewards: list[str]
) -> list[ShownPair]:
    wanted = {pair["idx"] for pair in pairs}
    rows = {idx: row for row, idx in enumerate(questions.idx) if idx in wanted}
    read = {idx: next(iter(questions.rows(range(row, row + 1)))) for idx, row in rows.items()}
    thumbnails = {idx: _thumbnails(question, decode) for idx, question in read.items()}
    return [ShownPair(pair, read[pair["idx"]].question or "", *thumbnails[pair["idx"]], rewards) for pair in pairs]


def _bars(funnel: Funnel) -> list[dict]:
    """The lines of the funnel; percent is relative to the last line that says how many came in."""
    whole, bars = 1, []
    for name, count in funnel.lines():
        if name in ("questions", "answers", "candidate pairs"):
            whole = max(count, 1)
        kind = "out" if name.startswith(" ") else "in"
        bars.append({"kind": kind, "name": name.strip(), "count": count, "percent": 100 * count / whole})
    return bars


def _plots(columns: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """(title, data URI) of each plot; none without pairs."""
    if not len(columns["margin"]):
        return []
    # matplotlib takes seconds to import, and only the rank that writes the report needs it.
    from data_engine.reporting import plots

    figures = [
        (TITLES.get(name, f"Reward {name}"), plots.reward_histogram(*(columns[f"{side}_{name}"] for side in SIDES)))
        for name in shown_rewards(columns)
    ]
    figures.append(
        ("Words, chosen against rejected", plots.lengths(columns["chosen_words"], columns["rejected_words"]))
    )
    return [(title, _data_uri(png, "png")) for title, png in figures]


def _thumbnails(question: Question, decode: Callable[[bytes | None], Image.Image]) -> tuple[list[str], str]:
    """The first few pictures of a question as small data URIs, and the reason why there is none."""
    try:
        return [
            _thumbnail(decode(image)) for image in question.images[:MAX_THUMBNAILS]
        ], question.problem or "no picture"
    except images.BadImage as error:
        return [], str(error)


def _thumbnail(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return _data_uri(file.getvalue(), "jpeg")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _render(**values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        finalize=_escaped,
    )
    environment.filters["thousands"] = "{:,}".format
    return environment.get_template("page.html.j2").render(values)


def _escaped(value: object) -> Markup:
    """Escaped as html.escape does, which writes &quot; and &#x27;; Jinja2's own escaping writes &#34; and &#39;."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))
