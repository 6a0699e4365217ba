"""Tables of the page that are no charts: the funnel, lengths, sources, rows left out, settings and what is bound."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine.duration import duration
from data_engine.preferences.funnel import Funnel
from data_engine.preferences.pairs_metadata import metadata_of
from data_engine.preferences.reward_totals import label, signed
from data_engine.questions.dataset import Questions
from data_engine.reporting.pair_numbers import KEPT, PairNumbers
from data_engine.reporting.quarantine import Kind
from data_engine.store import logs

Table = list[tuple[str, ...]]
# Columns of a dataset that name where a row is from, the first of them that is there.
SOURCE_COLUMNS = ("ds_name", "origin_dataset")
MOST_SOURCES, MOST_REASONS, MOST_LETTERS = 40, 30, 200
# Spans of one stage are drawn as one where the gap between them is at most this part of the timeline: 1 / LANE_STEPS.
LANE_STEPS = 400


def funnel_bars(funnel: Funnel) -> list[dict]:
    """The lines of the funnel; percent is relative to the last line that says how many came in."""
    whole, bars = 1, []
    for name, count in funnel.lines():
        if name in ("questions", "answers", "candidate pairs"):
            whole = max(count, 1)
        kind = "out" if name.startswith(" ") else "in"
        bars.append({"kind": kind, "name": name.strip(), "count": count, "percent": 100 * count / whole})
    return bars


def reward_table(path: Path) -> Table:
    """How rewards lie over all answers, by the metadata of a file of pairs; those of old have none."""
    found = metadata_of(path, "reward_totals").get("reward_totals", {})
    rows = [("reward", "answers", "mean", "best of a question", "worst of a question", "questions", "all equal")]
    for name, means in found.items():
        counts = (f"{means['questions']:,}", f"{means['equal']:,}")
        rows.append((label(name, means), f"{means['answers']:,}", *signed(means).values(), *counts))
    return rows if len(rows) > 1 else []


def length_table(numbers: PairNumbers) -> Table:
    """How much longer the chosen answers are, over all candidate pairs and over the kept ones."""
    rows = [("", "pairs", "words of chosen", "words of rejected", "mean difference", "chosen is longer", "equal")]
    for name, own in (("before: all candidates", np.arange(len(numbers))), ("after: kept", numbers.kept)):
        if not len(own):
            continue
        chosen, rejected = (numbers.columns[f"{side}_words"][own] for side in ("chosen", "rejected"))
        difference = numbers.word_difference[own]
        means = f"{chosen.mean():.1f}", f"{rejected.mean():.1f}", f"{difference.mean():+.2f}"
        shares = f"{100 * (difference > 0).mean():.1f} %", f"{100 * (difference == 0).mean():.1f} %"
        rows.append((name, f"{len(own):,}", *means, *shares))
    return rows if len(rows) > 1 else []


def source_table(questions: Questions, numbers: PairNumbers) -> tuple[str, Table]:
    """What names the sources, and questions, candidate and kept pairs of each; no rows where nothing names them."""
    column = next((name for name in SOURCE_COLUMNS if name in questions.optional_columns), None)
    if column is not None:
        named = (_text(value) for value in questions.column(column))
        title = f"column {column}"
    else:
        files = questions.file_sizes()
        if len(files) < 2:
            return "", []
        named, title = (name for name, size in files for _ in range(size)), "file of the dataset"
    codes, names = np.zeros(len(questions), np.int32), {}
    for row, name in zip(range(len(questions)), named, strict=False):
        codes[row] = names.setdefault(name, len(names))
    return title, _source_rows(questions, numbers, codes, list(names))


def _source_rows(questions: Questions, numbers: PairNumbers, codes: np.ndarray, names: list[str]) -> Table:
    idxs = pq.read_table(numbers.path, columns=["idx"], partitioning=None)["idx"]
    places = pc.index_in(idxs, pa.array(questions.idx, idxs.type)).to_numpy(zero_copy_only=False)
    own = codes[places.astype(np.int64)] if len(places) else codes[:0]
    counts = [np.bincount(found, minlength=len(names)) for found in (codes, own, own[numbers.kept])]
    order = np.argsort(-counts[0], kind="stable")[:MOST_SOURCES].tolist()
    rows = [("source", "questions", "candidate pairs", "kept pairs")]
    rows += [(names[at], *(f"{count[at]:,}" for count in counts)) for at in order]
    if len(names) > MOST_SOURCES:
        rest = [int(count.sum() - count[order].sum()) for count in counts]
        rows.append((f"{len(names) - MOST_SOURCES:,} others", *(f"{count:,}" for count in rest)))
    return rows


def _text(value: object) -> str:
    """A cell of a column that names a source."""
    if value is None:
        return "(none)"
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value))[:MOST_LETTERS]


def left_out_table(found: Mapping[tuple[str, str], Kind]) -> Table:
    """Rows that a stage left out by kind of reason, the most frequent first, with a few of their idx.

    Of the first of them the whole reason is told. `found` is what quarantine.kinds gives.
    """
    kinds = sorted(found.items(), key=lambda one: -one[1].rows)
    if not kinds:
        return []
    rows = [("left out in", "rows", "reason", "for example idx", "the reason of the first, in full")]
    for (stage, why), kind in kinds[:MOST_REASONS]:
        rows.append((stage, f"{kind.rows:,}", why, ", ".join(str(idx)[:60] for idx in kind.idxs), kind.reason))
    if len(kinds) > MOST_REASONS:
        rest = sum(kind.rows for _, kind in kinds[MOST_REASONS:])
        rows.append(("", f"{rest:,}", "other reasons", "", ""))
    return rows


def finish_table(reasons: Mapping[str, int]) -> Table:
    """Answers by why their text ended, the most frequent first."""
    whole = sum(reasons.values())
    if not whole:
        return []
    rows = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
    return [("answers ended by", "answers", "share"),
            *((name, f"{count:,}", f"{100 * count / whole:.1f} %") for name, count in rows)]  # fmt: skip


def rank_table(work_dir: Path) -> Table:
    """Time and throughput by stage and rank."""
    found: dict[tuple[str, str], list[float]] = {}
    for rank, line in logs.unit_lines_by_rank(work_dir):
        own = found.setdefault((line["stage"], rank), [0, 0.0, 0.0, 0.0])
        own[0] += 1
        for at, name in enumerate(("seconds", "answers", "tokens"), 1):
            own[at] += line.get(name, 0.0)
    if not found:
        return []
    rows = [("stage", "rank", "units", "time", "answers", "answers/s", "tokens/s")]
    for (stage, rank), (count, seconds, answers, tokens) in found.items():
        paces = [f"{value / seconds:,.1f}" if seconds and value else "" for value in (answers, tokens)]
        rows.append((stage, rank, f"{count:,}", duration(seconds), f"{int(answers):,}", *paces))
    return rows


def lanes(work_dir: Path, most: int = 32) -> tuple[list[tuple[str, list[tuple[float, float, str]]]], int]:
    """What each rank computed when, in seconds since the first start; spans of a stage that nearly touch are one.

    The first `most` ranks, and how many there are.
    """
    found: dict[str, list[tuple[float, float, str]]] = {}
    for rank, line in logs.unit_lines_by_rank(work_dir):
        found.setdefault(rank, []).append((line["time"] - line["seconds"], line["time"], line["stage"]))
    if not found:
        return [], 0
    first = min(start for spans in found.values() for start, _, _ in spans)
    last = max(end for spans in found.values() for _, end, _ in spans)
    near = (last - first) / LANE_STEPS
    named = sorted(found.items(), key=lambda one: [(len(part), part) for part in one[0].split(":")])[:most]

    def since_first(spans: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
        return [(start - first, end - first, stage) for start, end, stage in _joined(sorted(spans), near)]

    return [(f"rank {rank}", since_first(spans)) for rank, spans in named], len(found)


def _joined(spans: list[tuple[float, float, str]], near: float) -> list[tuple[float, float, str]]:
    found: list[tuple[float, float, str]] = []
    for start, end, stage in spans:
        if found and found[-1][2] == stage and start - found[-1][1] <= near:
            begun, ended, _ = found.pop()
            start, end = begun, max(ended, end)
        found.append((start, end, stage))
    return found


def settings_tables(path: Path, run_file: Mapping) -> list[tuple[str, Table]]:
    """The pairing's settings, what units are bound to, and versions; a title and rows of each."""
    metadata = metadata_of(path, "settings", "length_alpha")
    pairing = metadata.get("settings", {})
    if "length_alpha" in metadata:
        pairing["length_alpha (found)"] = metadata["length_alpha"]
    named = [
        ("Pairing", pairing),
        ("Bound: what shaped the numbers of every unit", run_file.get("bound")),
        ("Versions", run_file.get("versions")),
    ]
    return [
        (title, [(str(name), _value(value)) for name, value in sorted(values.items())])
        for title, values in named
        if isinstance(values, Mapping) and values
    ]


def _value(value: object) -> str:
    told = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return told if len(told) <= MOST_LETTERS else f"{told[:MOST_LETTERS]}…"


def dropped_statuses(numbers: PairNumbers) -> list[str]:
    """kept, where a pair was, then the filters that dropped one."""
    return [*([KEPT] if len(numbers.kept) else []), *numbers.dropped_by]
