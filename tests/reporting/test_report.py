"""The report: one page with the funnel, charts and pairs, that needs no server and that no data can break."""

import base64
import io
import json
import os
import re
import shutil

import pyarrow.parquet as pq
import pytest
from hostile_images import png_chunk, png_header
from PIL import Image
from report_page import Page
from stage2_world import make_world, pairs_rows, picture

from data_engine.questions.dataset import load_questions
from data_engine.questions.images import BadImage, decode
from data_engine.reporting import facts
from data_engine.reporting.page import report_text
from data_engine.reporting.pair_numbers import PairNumbers
from data_engine.store import logs
from data_engine.store.units import unit_path

TEXT = '</script><script>alert("x")</script> & "quoted" \'text\' 猫 \u2028 <!--'


def report_of(world, work_dir, left_out=None, **settings):
    world.publish(work_dir, left_out=left_out)
    funnel = world.pair(work_dir, **settings)
    return report_text(work_dir, world.questions(), funnel)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), num_questions=60)


@pytest.fixture(scope="module")
def work_dir(world, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("work")
    world.publish(work_dir)
    return work_dir


@pytest.fixture(scope="module")
def page(world, work_dir):
    return report_text(work_dir, world.questions(), world.pair(work_dir))


def test_the_page_needs_no_other_file_and_may_ask_no_server(page):
    parsed = Page(page)
    assert not {"link", "iframe", "object", "img"} & set(parsed.tags)
    assert not [value for name, value in parsed.attributes if name in ("src", "srcset")]
    assert {value for name, value in parsed.attributes if name == "href"} == {"#gallery-title"}
    [policy] = [value for name, value in parsed.attributes if name == "content" and "default-src" in value]
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'" in policy
    assert not re.search(r"https?:|@import|url\(|fetch\(|innerHTML", page)


def test_every_line_of_the_funnel_is_there(world, work_dir, page):
    texts = [text.strip() for text in Page(page).texts]
    for name, count in world.pair(work_dir).lines():
        at = texts.index(name.strip())
        assert texts[at + 1] == f"{count:,}"


def test_the_data_of_the_page_are_the_pairs_of_the_file(work_dir, page):
    rows = {(row["idx"], row["chosen_index"], row["rejected_index"]): row for row in pairs_rows(work_dir)}
    shown = Page(page).pairs
    assert len(rows) > 100
    assert {(pair["idx"], *pair["answers"]) for pair in shown} == set(rows)
    for number, pair in enumerate(shown):
        row = rows[pair["idx"], *pair["answers"]]
        assert pair["number"] == number
        assert [pair[name] for name in ("chosen", "rejected", "status")] == [
            row[name] for name in ("chosen", "rejected", "status")
        ]
        assert pair["words"] == [row["chosen_words"], row["rejected_words"]]
        assert pair["margin"] == pytest.approx(row["margin"], rel=1e-5)
        assert pair["rewards"]["implicit.sum"] == pytest.approx([row["chosen_sum"], row["rejected_sum"]], rel=1e-5)
        assert pair["question"] == f"What is in picture {int(pair['idx'][1:])}?"
    assert [pair["margin"] for pair in shown] == sorted((pair["margin"] for pair in shown), reverse=True)


def test_each_picture_is_in_the_page_once_and_small(tmp_path):
    large = io.BytesIO()
    Image.new("RGB", (1000, 500), (1, 2, 3)).save(large, "PNG")
    cells = [{"bytes": large.getvalue(), "path": None}] * 3 + [{"bytes": picture(7), "path": None}]
    data = Page(report_of(make_world(tmp_path, num_questions=4, image=cells), tmp_path / "work")).data
    sizes = [Image.open(io.BytesIO(base64.b64decode(image))).size for image in data["images"]]
    assert sorted(sizes) == [(6, 4), (256, 128)]
    of_idx = {pair["idx"]: sizes[pair["pictures"][0]] for pair in data["pairs"]}
    assert of_idx == {"q000": (256, 128), "q001": (256, 128), "q002": (256, 128), "q003": (6, 4)}


def test_whatever_comes_from_data_is_escaped(tmp_path):
    images = [{"bytes": picture(number), "path": TEXT} for number in range(4)]
    idxs = [f"{TEXT}{number}" for number in range(4)]
    world = make_world(tmp_path, num_questions=4, idx=idxs, question=[TEXT] * 4, image=images, ds_name=[TEXT] * 4)
    for row in world.rows:
        row["answer"] = f"{TEXT} {row['sample_index']}"
    text = report_of(world, tmp_path / "work", left_out={("sampled_answer", 0): [(TEXT, TEXT)]})
    parsed = Page(text)
    assert parsed.tags.count("script") == 2
    assert "<script>alert" not in text
    assert "<!--" not in text
    assert "\u2028" not in parsed.scripts[0]
    assert {pair["question"] for pair in parsed.pairs} == {TEXT}
    assert {pair["idx"] for pair in parsed.pairs} == set(idxs)
    assert any(shown.startswith(TEXT) for shown in parsed.texts)


def test_the_same_pairs_give_the_same_page(world, work_dir, page):
    # When they were written is among what it says.
    written = (work_dir / "pairs/pairs.parquet").stat()
    funnel = world.pair(work_dir)
    os.utime(work_dir / "pairs/pairs.parquet", ns=(written.st_atime_ns, written.st_mtime_ns))
    assert report_text(work_dir, world.questions(), funnel) == page


def test_a_run_without_pairs_has_a_report_of_its_funnel(tmp_path):
    text = report_of(make_world(tmp_path, num_questions=3, num_answers=1), tmp_path / "work")
    assert "candidate pairs" in text
    assert Page(text).data["pairs"] == Page(text).data["images"] == []
    assert "There is no candidate pair: the funnel says where answers were left out." in text
    # Nothing is said of what is not there: no logs were written either.
    assert not any(word in text for word in ("Agreement of", "Time and quarantine", "Shown:", "Each token is shaded"))


def test_equal_rewards_and_equal_lengths_can_be_drawn(tmp_path):
    world = make_world(tmp_path, num_questions=3, num_answers=4)
    for row in world.rows:
        row["answer"] = f"word{row['sample_index']}"
        row["instruct"] = row["reward"] = [-1.0]
    text = report_of(world, tmp_path / "work")
    # Two rewards, margins and lengths.
    assert text.count("<svg") == 4
    assert {pair["margin"] for pair in Page(text).pairs} == {0.0}


def test_a_unit_that_is_gone_costs_the_page_no_pair(tmp_path):
    """Only with run.json it is known which row is in which unit."""
    world, work_dir = make_world(tmp_path, num_questions=20), tmp_path / "work"
    world.publish(work_dir)
    funnel = world.pair(work_dir)
    before = Page(report_text(work_dir, world.questions(), funnel))
    (work_dir / "run.json").write_text(json.dumps({"units": {"unit_size": len(world.units()[0])}}))
    unit_path(work_dir, "sampled_answer", 0).unlink()
    after = Page(report_text(work_dir, world.questions(), funnel))
    assert [pair["chosen"] for pair in after.pairs] == [pair["chosen"] for pair in before.pairs]
    assert all(pair["pictures"] for pair in after.pairs)


def test_an_image_that_cannot_be_decoded_is_replaced_by_the_reason(tmp_path):
    images = [{"bytes": b"no image", "path": None} for _ in range(3)]
    data = Page(report_of(make_world(tmp_path, num_questions=3, image=images), tmp_path / "work")).data
    assert data["pairs"]
    assert all(pair["problem"].startswith("not an image in a known format") for pair in data["pairs"])
    assert not data["images"]


def test_what_a_broken_image_puts_into_the_reason_is_escaped(tmp_path):
    """A PNG that ends too soon, and goes on with a chunk of a strange name, which Pillow's message repeats."""
    whole = png_header(6, 4)
    data = whole[:-12] + png_chunk(b"B<&b", b"")
    world = make_world(tmp_path, num_questions=3, image=[{"bytes": data, "path": None}] * 3)
    with pytest.raises(BadImage, match="B<&b"):
        decode(data, 64)
    text = report_of(world, tmp_path / "work")
    assert "B<" not in text
    assert all("B<&b" in pair["problem"] for pair in Page(text).pairs)


def test_time_by_rank_and_quarantine_are_shown_and_escaped(world, tmp_path):
    logs.note(tmp_path, 0, "pairing <b>", 90.0)
    for rank, seconds in (("0", 10.0), ("3", 20.0)):
        line = {"time": 1000.0 + seconds, "stage": "sampled_answer", "unit": 0, "seconds": seconds, "answers": 40}
        logs.append(tmp_path / f"logs/rank-{rank}-host-1-ab.jsonl", {**line, "tokens": 400})
    page = report_of(world, tmp_path, left_out={("sampled_answer", 0): [("row 7", TEXT), ("row 8", TEXT)]})
    texts = [text.strip() for text in Page(page).texts]
    at = texts.index("pairing <b>")
    assert texts[at + 1 : at + 3] == ["1", "2 min"]
    assert Page(page).tags.count("script") == 2
    at = texts.index("left out in")
    assert "row 7, row 8" in texts[at:]
    # Its kind has no quoted text.
    assert TEXT.strip() in texts[texts.index("row 7, row 8") :]
    assert {"rank 0", "rank 3"} <= set(texts)
    cells = [text for text in texts[texts.index("tokens/s") :] if text]
    assert cells[1:15] == ["sampled_answer", "0", "1", "10 s", "40", "4.0", "40.0",
                           "sampled_answer", "3", "1", "20 s", "40", "2.0", "20.0"]  # fmt: skip


def test_pairs_are_counted_by_the_column_that_names_their_source(tmp_path):
    names = ["coco"] * 5 + ["vqa"] * 3
    world = make_world(tmp_path, num_questions=8, origin_dataset=names)
    texts = [text.strip() for text in Page(report_of(world, tmp_path / "work")).texts]
    assert "By column origin_dataset." in texts
    rows = pairs_rows(tmp_path / "work")
    for name, low, high in (("coco", 0, 5), ("vqa", 5, 8)):
        own = [row["status"] for row in rows if low <= int(row["idx"][1:]) < high]
        at = texts.index(name)
        assert [text for text in texts[at : at + 8] if text][1:4] == [
            str(high - low), str(len(own)), str(own.count("kept"))
        ]  # fmt: skip


def test_of_many_sources_the_smallest_are_counted_together(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "MOST_SOURCES", 2)
    world = make_world(tmp_path, num_questions=8, origin_dataset=["a", *"bbbb", *"cc", "d"])
    world.publish(tmp_path / "work")
    world.pair(tmp_path / "work")
    numbers = PairNumbers.read(tmp_path / "work/pairs/pairs.parquet")
    _, rows = facts.source_table(world.questions(), numbers)
    assert [row[:2] for row in rows[1:]] == [("b", "4"), ("c", "2"), ("2 others", "2")]
    assert sum(int(row[2]) for row in rows[1:]) == len(numbers)


def test_pairs_of_a_dataset_of_several_files_are_counted_by_file(tmp_path):
    world = make_world(tmp_path / "world", num_questions=8)
    world.publish(tmp_path / "work")
    world.pair(tmp_path / "work")
    table = pq.read_table(world.dataset_path)
    for name, part in (("a", table[:3]), ("b", table[3:])):
        (tmp_path / "several").mkdir(exist_ok=True)
        pq.write_table(part, tmp_path / f"several/{name}.parquet")
    numbers = PairNumbers.read(tmp_path / "work/pairs/pairs.parquet")
    title, rows = facts.source_table(load_questions(str(tmp_path / "several")), numbers)
    statuses = [[row["status"] for row in pairs_rows(tmp_path / "work") if low <= int(row["idx"][1:]) < high]
                for low, high in ((3, 8), (0, 3))]  # fmt: skip
    counted = [(str(len(own)), str(own.count("kept"))) for own in statuses]
    assert (title, rows[1:]) == (
        "file of the dataset", [("b.parquet", "5", *counted[0]), ("a.parquet", "3", *counted[1])]
    )  # fmt: skip


def test_a_dataset_that_names_no_source_is_told_nothing_of(page):
    assert "By source" not in page


def test_settings_and_what_is_bound_are_shown(world, work_dir, tmp_path):
    work_dir = shutil.copytree(work_dir, tmp_path / "work")
    (work_dir / "run.json").write_text(json.dumps({"bound": {"seed": 7, "dtype": "bfloat16"}, "config": {}}))
    texts = Page(report_text(work_dir, world.questions(), world.pair(work_dir))).texts
    assert texts[texts.index("dtype") + 1] == "bfloat16"
    assert texts[texts.index("distance") + 1] == str(
        json.loads(pq.read_schema(work_dir / "pairs/pairs.parquet").metadata[b"settings"])["distance"]
    )
