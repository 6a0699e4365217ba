"""The numbers of the report: which pairs it shows, how far rewards agree, and what two pairings share."""

import dataclasses
import functools
import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from report_page import Page
from stage2_world import make_world

from data_engine import schemas
from data_engine.preferences.funnel import Funnel
from data_engine.questions import images
from data_engine.questions.conversation import Conversation, Message
from data_engine.reporting import agreement, choice, facts
from data_engine.reporting.answers import Answers
from data_engine.reporting.compare import comparison_text, funnel_table, joined, overlap
from data_engine.reporting.gallery import PageData, _fit
from data_engine.reporting.pair_numbers import PairNumbers, read_rows
from data_engine.reporting.quarantine import Kind
from data_engine.reporting.render import escaped_json
from data_engine.reporting.thumbnails import EXCHANGED, Gallery
from data_engine.store import logs


def numbers_of(statuses, margins, path=None):
    names = sorted(set(statuses))
    codes = np.array([names.index(status) for status in statuses], np.int32)
    return PairNumbers(path, codes, names, {"margin": np.array(margins, float)})


def test_few_pairs_are_all_shown():
    numbers = numbers_of(["kept", "per_idx", "kept", "identical"], [1, 2, 3, 4])
    chosen = choice.choose(numbers, 10)
    assert sorted(chosen.rows.tolist()) == [0, 1, 2, 3]
    assert chosen.told == [
        "all 2 pairs that are kept", "the one dropped by identical", "the one dropped by per_idx"
    ]  # fmt: skip


def test_of_many_kept_pairs_a_quarter_is_from_each_end_and_the_rest_between():
    margins = np.random.default_rng(3).permutation(1000)
    chosen = choice.choose(numbers_of(["kept"] * 1000, margins), 100)
    shown = sorted(margins[chosen.rows].tolist())
    assert len(set(shown)) == 100
    assert shown[:25] == list(range(25))
    assert shown[-25:] == list(range(975, 1000))
    # Random ones between are no run: their mean is near the middle.
    assert 400 < np.mean(shown[25:-25]) < 600
    assert chosen.told == [
        "of 1,000 pairs that are kept the 25 of the largest margins, the 25 of the smallest, and 50 drawn at random "
        "between them"
    ]


def test_each_filter_has_an_even_share_of_what_is_shown_of_dropped_pairs():
    statuses = ["kept"] * 500 + ["per_idx"] * 300 + ["identical"] * 3 + ["length_balance"] * 300
    chosen = choice.choose(numbers_of(statuses, range(1103)), 100)
    shown = [statuses[row] for row in chosen.rows]
    assert {name: shown.count(name) for name in set(shown)} == {
        "kept": 80, "identical": 3, "per_idx": 9, "length_balance": 8
    }  # fmt: skip


def test_the_same_pairs_are_drawn_each_time_and_large_files_are_read_in_runs():
    numbers = numbers_of(["kept"] * 50_000, range(50_000))
    first, again = choice.choose(numbers, 1000), choice.choose(numbers, 1000)
    assert first.rows.tolist() == again.rows.tolist()
    between = sorted(set(first.rows.tolist()) - {*range(250), *range(49_750, 50_000)})
    assert len(between) == 500
    steps = np.diff(between)
    assert (steps == 1).sum() >= 475
    assert "in runs of 20 neighbours" in first.told[0]


def test_rows_are_read_in_the_order_asked_for(tmp_path):
    table = pa.table({"idx": list(range(10))})
    pq.write_table(table, tmp_path / "pairs.parquet", row_group_size=3)
    assert [row["idx"] for row in read_rows(tmp_path / "pairs.parquet", np.array([7, 0, 9, 2, 7]))] == [7, 0, 9, 2, 7]


def test_rank_correlation_is_spearmans():
    # By hand: ranks 1 2 3 4 5 against 2 1 4 3 5, 1 - 6 * (1 + 1 + 1 + 1) / (5 * 24).
    assert agreement.rank_correlation(np.arange(5.0), np.array([2.0, 1, 4, 3, 5])) == pytest.approx(0.8)
    assert agreement.rank_correlation(np.arange(3.0), np.zeros(3)) is None
    assert agreement.mean_ranks(np.array([5.0, 1, 5, 2])).tolist() == [3.5, 1, 3.5, 2]


def test_two_rewards_agree_on_the_pairs_that_both_put_in_one_order():
    one, other = np.array([1.0, -1, 2, 0, np.nan]), np.array([3.0, 1, 5, 0, 1])
    found = agreement.agreement(("a", one), ("b", other))
    assert (found.num_pairs, found.same_order) == (4, 0.75)
    assert agreement.agreement(("b", other), ("a", one)) == dataclasses.replace(found, first="b", second="a")


def test_disagreement_is_the_distance_of_a_pairs_places():
    one, other = np.array([0.0, 1, 2, 3, 4]), np.array([40.0, 1, 2, 3, -9])
    assert agreement.disagreement([one, other]).tolist() == [1.0, 0, 0, 0, 1.0]
    assert np.isnan(agreement.disagreement([one[:1], np.array([np.nan])])).all()


def test_spans_of_a_stage_that_touch_are_one(tmp_path, monkeypatch):
    lines = [
        ("0", {"stage": "a", "time": 110.0, "seconds": 10.0}),
        ("0", {"stage": "a", "time": 120.0, "seconds": 10}),
        ("0", {"stage": "b", "time": 140.0, "seconds": 20.0}),
        ("10", {"stage": "a", "time": 105.0, "seconds": 4.0}),
        # Of a process that was started again while the first one went on.
        ("2", {"stage": "a", "time": 130.0, "seconds": 30.0}),
        ("2", {"stage": "a", "time": 120.0, "seconds": 10.0}),
    ]
    monkeypatch.setattr(facts.logs, "unit_lines_by_rank", lambda work_dir: iter(lines))
    shown = [("rank 0", [(0, 20, "a"), (20, 40, "b")]), ("rank 2", [(0, 30, "a")]), ("rank 10", [(1, 5, "a")])]
    assert facts.lanes(tmp_path) == (shown, 3)
    assert facts.lanes(tmp_path, most=1) == (shown[:1], 3)


def test_ranks_of_several_shards_are_told_apart(tmp_path):
    """Two jobs of one rank each, at the same time; behind them one that pairs, and works on all."""
    unit = {"stage": "sampled_answer", "seconds": 10.0, "answers": 80}
    for host, shard, unit_time in (("a", [0, 2], 110.0), ("b", [1, 2], 112.0), ("c", [0, 1], 130.0)):
        path = tmp_path / f"logs/rank-0-{host}-1-00000000.jsonl"
        logs.append(path, {"time": 100.0, "rank": 0, "process": {}, "shard": shard})
        logs.append(path, unit | {"time": unit_time})
    found, num_ranks = facts.lanes(tmp_path)
    assert (found, num_ranks) == (
        [("rank 0", [(20, 30, "sampled_answer")]), ("rank 0:0", [(0, 10, "sampled_answer")]),
         ("rank 1:0", [(2, 12, "sampled_answer")])], 3,
    )  # fmt: skip
    assert [row[1:6] for row in facts.rank_table(tmp_path)[1:]] == [
        ("0:0", "1", "10 s", "80", "8.0"), ("1:0", "1", "10 s", "80", "8.0"), ("0", "1", "10 s", "80", "8.0")
    ]  # fmt: skip


def test_of_many_kinds_of_reasons_the_rarest_are_counted_together(monkeypatch):
    kinds = {("sampled_answer", why): Kind(why, rows) for why, rows in (("a", 2), ("b", 9), ("c", 4), ("d", 3))}
    monkeypatch.setattr(facts, "MOST_REASONS", 2)
    assert [row[:3] for row in facts.left_out_table(kinds)[1:]] == [
        ("sampled_answer", "9", "b"), ("sampled_answer", "4", "c"), ("", "5", "other reasons")
    ]  # fmt: skip


def test_what_could_end_a_script_is_escaped_and_read_back_the_same():
    value = {"</script>": "<!-- & \u2028\u2029 猫 \\u003c"}
    told = escaped_json(value)
    assert not set("<>&\u2028\u2029") & set(told)
    assert json.loads(told) == value
    with pytest.raises(ValueError, match="JSON"):
        escaped_json([float("nan")])


def test_a_page_that_would_be_too_large_has_smaller_thumbnails_and_then_fewer_pairs(monkeypatch):
    gallery = Gallery(jpegs=[b"x" * 300_000 for _ in range(10)])
    monkeypatch.setattr(gallery, "lower_quality", lambda: None)
    data = PageData([{"pictures": [9 - number]} for number in range(10)], [], SimpleNamespace())
    _fit(data, gallery, 1_250_000)
    assert [pair["pictures"] for pair in data.pairs] == [[2], [1], [0]]
    assert len(data.images) == 3
    assert data.told == ["thumbnails at JPEG quality 45, so that the page stays below 40 MB",
                         "7 pairs left out, so that the page stays below 40 MB"]  # fmt: skip


def pairs_file(path, rows):
    """A file of pairs of (idx, chosen_index, rejected_index, status)."""
    names = ("idx", "chosen_index", "rejected_index", "status")
    schema = schemas.pairs(pa.string())
    full = [dict.fromkeys(schema.names) | dict(zip(names, row, strict=True)) | {"chosen_words": 1, "rejected_words": 1}
            for row in rows]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(full, schema), path)
    return PairNumbers.read(path)


def test_of_many_pictures_of_a_question_four_are_shown_and_the_others_are_counted():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    gallery = Gallery()
    for idx, number in enumerate((1, 4, 6)):
        picture = file.getvalue()
        question = SimpleNamespace(
            idx=idx, question="?", images=[picture] * number, problem=None, missing=False,
            conversation=Conversation.of("?", number),
        )  # fmt: skip
        gallery.add(question, functools.partial(images.decode, max_megapixels=1))
    shown = [gallery.questions[idx] for idx in range(3)]
    assert [(len(one.pictures), one.num_left_out) for one in shown] == [(1, 0), (4, 0), (4, 2)]


def test_a_picture_that_was_exchanged_is_looked_for_in_another_folder():
    gallery = Gallery()
    question = SimpleNamespace(
        idx=1, question="?", images=[b"another"], problem=None, missing=False, conversation=Conversation.of("?", 1)
    )
    gallery.add(question, lambda data: pytest.fail("it is read"), is_same=False)
    shown = gallery.questions[1]
    assert (shown.pictures, shown.problem, shown.missing, shown.is_unread) == ([], EXCHANGED, True, True)


def test_the_turns_before_the_question_of_a_chat_are_shown_but_for_a_system_text():
    turns = (("system", "Be brief."), ("user", "What is it?"), ("assistant", "A cat."), ("user", "Which colour?"))
    chat = Conversation(tuple(Message(role, (text,)) for role, text in turns))
    gallery = Gallery()
    for idx, text, problem, conversation in ((1, "Which colour?", None, chat), (2, None, "no text", None)):
        question = SimpleNamespace(
            idx=idx, question=text, images=[], problem=problem, missing=False, conversation=conversation
        )
        gallery.add(question, None)
    assert gallery.questions[1].text == "Which colour?"
    assert gallery.questions[1].before == [("user", "What is it?"), ("assistant", "A cat.")]
    assert gallery.questions[2].before == []


def test_overlap_counts_pairs_of_the_same_answers_in_the_same_order(tmp_path):
    ours = [("a", 0, 1), ("b", 0, 1), ("c", 5, 1), ("d", 0, 1), ("e", 2, 3)]
    theirs = [("d", 1, 0), ("c", 5, 1), ("e", 2, 3), ("a", 1, 2)]
    rows = [[(*key, "kept") for key in own] for own in (ours, theirs)]
    rows[0].insert(1, ("a", 1, 2, "per_idx"))
    rows[1].append(("b", 0, 1, "identical"))
    one, other = (pairs_file(tmp_path / f"{at}.parquet", own) for at, own in enumerate(rows))
    shared = overlap(one, other)
    assert (shared.both, shared.turned) == (2, 1)
    assert [rows.tolist() for rows in shared.only] == [[0, 2, 4], [0, 3]]


def test_funnels_stand_side_by_side_in_the_order_in_which_things_are_left_out():
    one = Funnel(questions=1200, dropped={"identical": 2}, written=3)
    other = Funnel(questions=1200, dropped={"identical": 1, "margin": 4}, kept=9)
    rows = {name: counts for name, *counts in funnel_table([("pairs", one), ("wide", other)])}
    assert rows[""] == ["pairs", "wide"]
    assert rows["questions"] == ["1,200", "1,200"]
    assert rows["  dropped by margin"] == ["", "4"]
    assert list(rows).index("  dropped by margin") < list(rows).index("kept")


def test_pairs_that_are_kept_stand_in_one_line_whether_a_pairing_is_written_as_a_dataset_or_not():
    written = Funnel(written=3, not_fitting=2, not_written={"its picture is gone": 1})
    rows = {name: counts for name, *counts in funnel_table([("wide", Funnel(kept=9)), ("pairs", written)])}
    assert rows["kept"] == ["9", str(written.found)]
    assert rows["written"] == ["", "3"]
    order = list(rows)
    assert (
        order.index("kept") < order.index("  kept, but not in dataset/: its picture is gone") < order.index("written")
    )


def test_two_galleries_are_joined_to_one_in_which_each_picture_is_once():
    one = PageData([{"pictures": [0, 1]}], ["a", "b"], Answers(), ["smaller", "of one"], {"q1": None})
    other = PageData(
        [{"pictures": [1, 0]}, {"pictures": []}], ["b", "c"], Answers(), ["smaller", "of other"], {"q2": None}
    )
    both = joined(one, other)
    assert both.images == ["a", "b", "c"]
    assert [pair["pictures"] for pair in both.pairs] == [[0, 1], [2, 1], []]
    assert [pair["number"] for pair in both.pairs] == [0, 1, 2]
    assert both.told == ["smaller", "of one", "of other"]
    assert list(both.questions) == ["q1", "q2"]


def test_a_comparison_shows_the_pairs_that_one_alone_keeps(tmp_path):
    world = make_world(tmp_path, num_questions=12)
    work = tmp_path / "work"
    world.publish(work)
    wide = world.pair(work, distance=25)
    (work / "pairs/pairs.parquet").rename(work / "pairs/wide.parquet")
    own = world.pair(work, distance=6)
    page = Page(comparison_text(work, world.questions(), (("pairs", own), ("wide", wide))))
    assert ("id", "compare") in page.attributes
    kept = [
        {
            (row["idx"], row["chosen_index"], row["rejected_index"])
            for row in pq.read_table(work / f"pairs/{name}.parquet").to_pylist()
            if row["status"] == "kept"
        }
        for name in ("pairs", "wide")
    ]
    shown = {name: {(pair["idx"], *pair["answers"]) for pair in page.pairs if pair["status"] == f"only {name}"}
             for name in ("pairs", "wide")}  # fmt: skip
    assert shown == {"pairs": kept[0] - kept[1], "wide": kept[1] - kept[0]}
    assert shown["wide"]
    assert [pair["number"] for pair in page.pairs] == list(range(len(page.pairs)))
    told = [text.strip() for text in page.texts]
    assert told[told.index("in both, the same answer chosen") + 1] == str(len(kept[0] & kept[1]))


def test_the_numbers_of_pairs_are_read_without_a_second_copy_of_all(tmp_path):
    """In a process of its own, whose peak is that of this file alone."""
    num_rows, path = 200_000, tmp_path / "pairs.parquet"
    numbers = np.random.default_rng(0).normal(size=num_rows)
    columns = {f"{side}_{name}": numbers for side in ("chosen", "rejected") for name in ("sum", "avg", "a", "b")}
    columns |= {f"{side}_words": numbers.astype(np.int32) for side in ("chosen", "rejected")}
    pq.write_table(pa.table({**columns, "status": ["kept"] * num_rows}), path, row_group_size=8192)
    code = (
        "import pathlib, sys, pyarrow\n"
        "from data_engine.reporting.pair_numbers import PairNumbers\n"
        "found = PairNumbers.read(pathlib.Path(sys.argv[1]))\n"
        "print(len(found), pyarrow.default_memory_pool().max_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    rows, peak_bytes = map(int, done.stdout.split())
    assert rows == num_rows
    # Eight columns of 8 bytes and two of 4, beside which the next one is read.
    assert peak_bytes < 1.5 * (8 * 8 + 2 * 4) * num_rows
