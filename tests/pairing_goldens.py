"""The reference's pairing tables, read once for the tests of pairs and filters."""

import json
from bisect import insort
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise, takewhile
from operator import itemgetter
from pathlib import Path

GOLDENS = Path(__file__).with_name("goldens")


@dataclass(frozen=True)
class Table:
    """One reward table, with what the reference made of it."""

    name: str
    sample_k: int
    rank: int
    distance: int
    rows: list[dict]
    """idx, sample_index (place among the rows of its idx), answer, sum, avg"""
    expected: dict

    @property
    def text_ids(self) -> dict[str, int]:
        """text -> number of its first row"""
        return {row["answer"]: number for number, row in reversed(list(enumerate(self.rows)))}

    @property
    def words(self) -> dict[str, int]:
        """text -> the reference's word count (trained Punkt)"""
        texts = {number: text for text, number in self.text_ids.items()}
        return {texts[text_id]: words for _, _, words, _, text_id in self.expected["sum_ranked"]}

    def named(self, pairs: list[list]) -> list[tuple]:
        """The golden's pairs as (idx, chosen id, rejected id)."""
        return [(idx, chosen, rejected) for idx, _, _, chosen, rejected in pairs]


def rows_of(table_rows: list[dict], avg_factor: float = 1.0) -> list[dict]:
    seen, rows = Counter(), []
    for row in table_rows:
        total, average = float(row["sum"]), float(row["avg"]) * avg_factor
        rows.append(
            {"idx": row["idx"], "sample_index": seen[row["idx"]], "answer": row["chosen"], "sum": total, "avg": average}
        )
        seen[row["idx"]] += 1
    return rows


def _v1_tables() -> list[Table]:
    given = json.loads((GOLDENS / "pairing/reward_tables.json").read_text())
    expected = json.loads((GOLDENS / "pairing/expected_0dbb20f.json").read_text())
    return [
        Table(one["name"], one["sample_k"], one["rank"], one["distance"], rows_of(one["rows"]), result)
        for one, result in zip(given, expected, strict=True)
    ]


def _llava_tables() -> list[Table]:
    rewards = json.loads((GOLDENS / "llava/rewards_matched_be9ac29.json").read_text())
    expected = json.loads((GOLDENS / "llava/pairs_from_rewards_matched_be9ac29.json").read_text())
    # The reference applies beta twice to avg; ours is ten times larger.
    rows = rows_of(rewards, avg_factor=10)
    return [
        Table(one["name"].split(":")[1], one["sample_k"], one["rank"], one["distance"], rows, one) for one in expected
    ]


V1_TABLES = _v1_tables()
LLAVA_TABLES = _llava_tables()


def reference_groups(table: Table, rules: set[str]) -> list[list[dict]]:
    """The groups that the reference ranks, changed by the named rules of this project."""
    groups = [table.rows[start : start + table.sample_k] for start in range(0, len(table.rows), table.sample_k)]
    if "by idx" in rules:
        idxs = list(dict.fromkeys(row["idx"] for row in table.rows))
        groups = [[row for row in table.rows if row["idx"] == idx] for idx in idxs]
    if "equal texts once" in rules:
        groups = [[row for at, row in enumerate(group) if row["answer"] not in texts(group[:at])] for group in groups]
    if "no empty text" in rules:
        groups = [[row for row in group if row["answer"]] for group in groups]
    if "finite only" in rules:
        groups = [[row for row in group if abs(row["sum"]) + abs(row["avg"]) < float("inf")] for group in groups]
    return groups


def texts(rows: list[dict]) -> list[str]:
    return [row["answer"] for row in rows]


def reference_ranking(group: list[dict], by: str) -> list[dict]:
    """A stable sort that keeps the input order of ties, also in reverse.

    By the steps of `sorted` up to Python 3.12, which made the goldens: a run, then insertions. Where a nan is among the
    rewards, the order depends on the steps, and 3.13 has others.
    """
    rows = group[::-1]
    falls = [later[by] < earlier[by] for earlier, later in pairwise(rows)]
    run = 1 + sum(1 for _ in takewhile(lambda fall: fall == falls[0], falls))
    ordered = rows[:run][:: -1 if True in falls[:1] else 1]
    for row in rows[run:]:
        insort(ordered, row, key=itemgetter(by))
    return ordered[::-1]


def reference_pairs(table: Table, rules: set[str]) -> list[tuple]:
    """(idx, chosen id, rejected id) by the reference's steps, changed by the named rules of this project."""
    ids, words, pairs = table.text_ids, table.words, []
    for group in reference_groups(table, rules):
        by_sum, by_avg = reference_ranking(group, "sum"), reference_ranking(group, "avg")
        chosen = [text for text in texts(by_sum[: table.rank]) if text in texts(by_avg[: table.rank])]
        rejected = [text for text in texts(by_sum[-table.rank :]) if text in texts(by_avg[-table.rank :])]
        if "not on both sides" in rules:
            both = set(chosen) & set(rejected)
            chosen, rejected = ([text for text in side if text not in both] for side in (chosen, rejected))
        pairs += [
            (by_sum[0]["idx"], ids[good], ids[bad])
            for good in chosen
            for bad in rejected
            if abs(words[good] - words[bad]) < table.distance
        ]
    return pairs
